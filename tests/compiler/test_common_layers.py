"""The layers that two graphs share: found by name and shape, called as the user's model calls them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.comparison import common_layers


def net(scale: float = 1.0, last: str = "scores", width: int = 4) -> onnx.ModelProto:
    """A convolution, a ReLU, a flattening that only moves, and a matrix."""
    random = np.random.default_rng(0)
    weights = {
        "stem.conv.weight": random.normal(size=(width, 3, 3, 3)) * scale,
        "head.weight": np.random.default_rng(1).normal(size=(width * 36, 2)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem.conv.weight"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.weight"], [last]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


FRAMES = [np.random.default_rng(k).normal(size=(1, 3, 8, 8)).astype(np.float32) for k in range(2)]


def test_layers_are_called_after_their_weights_and_what_moves_values_is_none() -> None:
    found = common_layers.compare(net(), net(1.01), FRAMES)

    assert [(v.name, v.layer, v.kind) for v in found.values] == [
        ("conv", "stem.conv", "Conv"),
        ("relu", "relu", "Relu"),
        ("scores", "head", "MatMul"),
    ]
    assert [v.sqnr_db for v in found.values] == [pytest.approx(40.0, abs=0.01)] * 3
    assert (found.known_a, found.known_b) == (3, 3)


def test_a_value_of_another_name_or_shape_is_not_shared() -> None:
    other_name = common_layers.compare(net(), net(last="logits"), FRAMES)
    other_shape = common_layers.compare(net(), net(width=5), FRAMES)

    assert [v.name for v in other_name.values] == ["conv", "relu"]
    assert [v.name for v in other_shape.values] == ["scores"]


def test_the_same_net_is_the_same_everywhere() -> None:
    assert {v.sqnr_db for v in common_layers.compare(net(), net(), FRAMES).values} == {200.0}
