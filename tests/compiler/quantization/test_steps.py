"""Weights for kernels that add two products in 16 bits: no more than fits, and no less than could."""

from __future__ import annotations

import subprocess
import sys

import needs
import nets
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.quantization import calibrate, quantize
from compiler.quantization.steps import step_widths
from skerry.execution.device import this_device


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**16), st.sampled_from(["normal", "equal", "thirds"]))
def test_no_rounding_takes_two_neighbours_past_what_16_bits_hold(products: int, seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    rows = {
        "normal": random.normal(0, 1, (4, products)),
        "equal": np.full((4, products), random.uniform(0.1, 9)),
        "thirds": random.choice([0.0, 1 / 3, 0.5, 2 / 3, 1.0], (4, products)),
    }[kind].astype(np.float32)
    widths = np.maximum(step_widths(rows, in_16_bits=True), 1e-12).astype(np.float32)

    stored = np.abs(np.rint(rows / widths[:, None])).astype(int)

    assert stored.max() <= 127
    assert (stored[:, 1:] + stored[:, :-1]).max(initial=0) * 255 < 2**15


def test_they_are_never_wider_than_if_each_had_64_steps() -> None:
    rows = np.random.default_rng(1).normal(0, 1, (64, 90)).astype(np.float32)

    widths = step_widths(rows, in_16_bits=True)

    assert (widths <= np.abs(rows).max(axis=1) / 64 * 1.0001).all()
    assert widths.mean() < np.abs(rows).max(axis=1).mean() / 75
    assert np.allclose(step_widths(rows, in_16_bits=False), np.abs(rows).max(axis=1) / 127)


def strained_net() -> onnx.ModelProto:
    """Every kind of kernel, weights all of one size and of one sign, and inputs that are all at the upper end."""
    net = nets.Net(1, 3, 12, 12)
    value = net.node("Relu", net.conv("image", 3, 32, name="three channels"))
    value = net.node("Relu", net.conv(value, 32, 32, name="depthwise", group=32))
    value = net.node("Relu", net.conv(value, 32, 20, 1, name="pixelwise"))
    value = net.node("Relu", net.conv(value, 20, 20, name="grouped", group=4))
    value = net.node("Relu", net.conv(value, 20, 40, name="two from each", group=20))
    flat = net.node("Flatten", net.node("GlobalAveragePool", value))
    out = net.node(
        "Gemm", flat, net.weights(8, 40, name="head.weight"), net.constant(np.zeros(8, np.float32)), transB=1
    )
    for tensor in net.tensors:
        made = onnx.numpy_helper.to_array(tensor)
        flatter = (1 + 0.01 * np.abs(made)) / np.prod(made.shape[1:]) if made.ndim > 1 else made
        tensor.CopyFrom(onnx.numpy_helper.from_array(flatter.astype(np.float32), tensor.name))
    return net.model(out)


_DIFFERENCE = """
import sys
import numpy as np, onnx, onnxruntime as ort
found = []
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    found.append(session.run(None, {"image": np.full((1, 3, 12, 12), 1.0, np.float32)})[0])
print(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "saturates"), [("u8s8-7bit", False), ("u8s8", True)])
def test_a_cpu_without_vnni_gives_the_literal_answers(layout, saturates, tmp_path) -> None:
    before = []
    if "vnni" in this_device().cpu:
        before = [needs.program("qemu-x86_64", "qemu-user"), "-cpu", "Haswell"]
    onnx.save(strained_net(), tmp_path / "net.onnx")
    quantize.prepare(tmp_path / "net.onnx", tmp_path / "prepared.onnx")
    frames = [np.full((1, 3, 12, 12), level, np.float32) for level in (0.5, 1.0)]
    ranges = calibrate.ranges(onnx.load(tmp_path / "prepared.onnx"), frames, "minmax", 1, lambda _text: None)
    quantize.lay_out(tmp_path / "prepared.onnx", tmp_path / "int8.onnx", ranges, layout=layout)

    command = [*before, sys.executable, "-c", _DIFFERENCE, str(tmp_path / "int8.onnx")]
    apart = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert (apart > 0.1) == saturates, apart
    assert saturates or apart < 0.02, apart
