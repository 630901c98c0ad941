"""Channels before a depthwise layer are scaled alike: the net says the same, and int8 loses less."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest

from compiler.graph.onnxfile import Probe, weights_of
from compiler.graph.view import Graph
from compiler.quantization import calibrate, quantize
from compiler.quantization.equalize import edges, equalize, scales_of

FRAMES = [np.random.default_rng(i).normal(size=(1, 3, 12, 12)).astype(np.float32) for i in range(12)]
CALIBRATION, UNSEEN = FRAMES[:8], FRAMES[8:]


def said(_text: str) -> None:
    """Progress that nobody reads."""


def uneven(kind="Relu", *, second_reader=False, shared=False, group=16):
    """A convolution whose channels differ by a hundred, an activation, a depthwise layer, and a way out."""
    net = nets.Net(1, 3, 12, 12)
    value = net.conv("image", 3, 16, 3, name="before")
    names = {"Relu": [], "Clip": [net.constant(np.float32(0)), net.constant(np.float32(6))]}
    names["Clip from -1"] = [net.constant(np.float32(-1)), names["Clip"][1]]
    value = net.node(kind.partition(" ")[0], value, *names[kind], name="seen")
    out = net.conv(value, 16, 16, 3, name="behind", group=group)
    if shared:
        out = net.node("Conv", out, "behind.weight", "behind.bias", group=group, pads=[1, 1, 1, 1])
    if second_reader:
        out = net.node("Add", out, value)
    flat = net.node("Flatten", net.node("GlobalAveragePool", net.node("Relu", net.conv(out, 16, 8))))
    head = net.node("Gemm", flat, net.weights(4, 8), net.constant(np.ones(4, np.float32)), name="scores", transB=1)
    sizes = np.geomspace(0.02, 2.0, 16, dtype=np.float32)
    for tensor in net.tensors:
        if tensor.name in ("before.weight", "before.bias"):
            values = onnx.numpy_helper.to_array(tensor)
            scaled = values * sizes.reshape(-1, *[1] * (values.ndim - 1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
        if tensor.name == "behind.weight" and group == 16:  # the small ones matter as much
            values = onnx.numpy_helper.to_array(tensor) / sizes.reshape(-1, 1, 1, 1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return net.model(head)


@pytest.fixture
def prepared(tmp_path):
    def make(model):
        onnx.save(model, tmp_path / "net.onnx")
        quantize.prepare(tmp_path / "net.onnx", tmp_path / "prepared.onnx")
        return onnx.load(tmp_path / "prepared.onnx")

    return make


def answers(model, frames, *, literal=False):
    probe = Probe(model, ["scores"], threads=1, literal=literal)
    return np.concatenate([dict(probe(frame))["scores"] for frame in frames])


def int8_error(model, wanted):
    ranges = calibrate.ranges(model, CALIBRATION, "minmax", 1, said)
    quantized = quantize.laid_out(model, ranges, layout="u8s8")
    return float(np.square(answers(quantized, UNSEEN, literal=True) - wanted).mean())


@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_the_net_says_the_same_and_int8_loses_less(prepared, kind):
    model = prepared(uneven(kind))
    wanted = answers(model, UNSEEN)

    made = equalize(model, CALIBRATION, 1, said)

    np.testing.assert_allclose(answers(made, UNSEEN), wanted, rtol=1e-4, atol=1e-5)
    assert int8_error(made, wanted) < int8_error(model, wanted) / 2


def test_only_the_tables_on_either_side_change(prepared):
    model = prepared(uneven())
    made = equalize(model, CALIBRATION, 1, said)

    before, after = weights_of(model), weights_of(made)
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {
        "before.weight",
        "before.bias",
        "behind.weight",
    }
    assert made.graph.node == model.graph.node


@pytest.mark.parametrize(
    "changes", [{"kind": "Clip from -1"}, {"second_reader": True}, {"shared": True}, {"group": 1}], ids=str
)
def test_where_somebody_else_would_see_it_nothing_is_scaled(prepared, changes):
    model = prepared(uneven(**changes))

    assert edges(Graph(model)) == []
    assert equalize(model, CALIBRATION, 1, said) is model


def test_a_channel_has_room_for_twice_what_was_seen_of_it():
    highest = np.array([0.0, 0.01, 0.5, 1.5, 3.0, 6.0], np.float32)

    assert scales_of(highest, 6.0).tolist() == [16.0, 16.0, 6.0, 2.0, 1.0, 1.0]
    assert scales_of(highest, np.inf).tolist() == [16.0, 16.0, 6.0, 2.0, 1.0, 1.0]
    assert scales_of(np.zeros(2, np.float32), np.inf).tolist() == [1.0, 1.0]
