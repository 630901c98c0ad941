"""Small foreign ONNX graphs, each odd in its own way. Needs numpy and onnx alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, DOUBLE, INT64, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
)
SHAPE = [1, 3, 8, 8]

node = helper.make_node


def array(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(dtype)


def held(name: str, value: object, dtype: type | None = None) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.array(value, dtype), name)


def value(name: str, kind: int = FLOAT, shape: Sequence[int | str | None] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


CONV = [held("w", array(4, 3, 3, 3)), held("b", array(4, seed=1))]
HEAD = [held("f", array(4, 5, seed=2))]


def conv(source: str = "image", out: str = "c", **more: object) -> onnx.NodeProto:
    return node("Conv", [source, "w", "b"], [out], pads=[1, 1, 1, 1], **more)


def head(source: str = "c", out: str = "scores") -> list[onnx.NodeProto]:
    """From [N, 4, H, W] to scores [N, 5]."""
    return [
        node("GlobalAveragePool", [source], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "f"], [out]),
    ]


def graph(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    *,
    opset: int = 20,
    image: onnx.ValueInfoProto | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    domains: Sequence[str] = (),
    listed: bool = False,
    ir: int = 8,
) -> onnx.ModelProto:
    """A model. ``listed`` lists the initializers as inputs too, as files before IR 4 had to."""
    inputs = [image or value("image", shape=SHAPE)]
    if listed:
        inputs += [value(t.name, t.data_type, list(t.dims)) for t in initializers]
    made = helper.make_graph(list(nodes), "foreign", inputs, list(outputs or [value("scores")]), list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=imports, ir_version=ir)


def plain(opset: int = 20, **more: object) -> onnx.ModelProto:
    """Convolution, ReLU, pooling, and a matrix: what the others are variations of."""
    return graph([conv(), node("Relu", ["c"], ["r"]), *head("r")], [*CONV, *HEAD], opset=opset, **more)


def branch(name: str, nodes: Sequence[onnx.NodeProto], out: str, held_inside: Sequence[TensorProto] = ()):
    """A subgraph without inputs."""
    return helper.make_graph(list(nodes), name, [], [value(out)], list(held_inside))
