"""Half precision on a CPU: what overflows on an accelerator overflows here, value by value."""

from __future__ import annotations

import faulty
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16

from compiler.graph.onnxfile import Probe
from compiler.graph.rounding import rounded


def halved(*, loud: float = 1.0, keep_io_types: bool = True) -> onnx.ModelProto:
    model = convert_float_to_float16(faulty.normed(loud=loud), keep_io_types=keep_io_types)
    nodes = sorted(model.graph.node, key=lambda n: "graph_input_cast" not in n.name)  # the converter puts it last
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def values(model: onnx.ModelProto, names: list[str], *, literal: bool) -> dict[str, np.ndarray]:
    kind = np.float16 if model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32
    return dict(Probe(model, names, threads=1, literal=literal)(faulty.frames(1)[0].astype(kind)))


def test_a_square_that_overflows_is_seen_and_by_the_plain_runtime_is_not() -> None:
    model = halved(loud=5000.0)

    assert np.isfinite(values(model, ["scores"], literal=False)["scores"]).all()
    found = values(model, ["off", "square", "var"], literal=True)
    assert np.isfinite(found["off"]).all()
    assert np.isinf(found["square"]).any()
    assert np.isinf(found["var"]).all()


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_every_value_is_one_that_half_precision_has(*, keep_io_types: bool) -> None:
    model = halved(keep_io_types=keep_io_types)
    names = ["stem", "stem.relu", "flat", "normed", "up", "scores"]

    found = values(model, names, literal=True)

    onnx.checker.check_model(rounded(model))
    for name, value in found.items():
        assert (value == value.astype(np.float16).astype(np.float32)).all(), name


def test_it_agrees_with_the_standards_own_evaluator() -> None:
    model = halved()
    tensor = faulty.frames(1)[0]

    (wanted,) = ReferenceEvaluator(model).run(["scores"], {"image": tensor})

    found = values(model, ["scores"], literal=True)["scores"]
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_a_model_without_half_precision_is_left_alone() -> None:
    model = faulty.chain()

    assert rounded(model) is model
    assert all(numpy_helper.to_array(t).dtype != np.float16 for t in rounded(halved()).graph.initializer)
