"""INT8 on small random nets: layouts, bias correction, and names that lead back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.graph.onnxfile import Probe, float_values, weights_of
from compiler.quantization import calibrate, quantize
from compiler.quantization.correct import affordable, correct_biases
from compiler.quantization.qdq import Range

Tensor = np.ndarray
FRAMES = 24


def net(*, biases: bool = True) -> onnx.ModelProto:
    """image [1, 3, 16, 16]: two convolutions with ReLU, one of them depthwise, then a mean and a small matrix."""
    random = np.random.default_rng(3)

    def values(*shape: int) -> Tensor:
        return random.normal(0.0, 0.5, shape).astype(np.float32)

    weights = {
        "first.weight": values(8, 3, 3, 3),
        "first.bias": values(8),
        "each.weight": values(8, 1, 3, 3) * np.geomspace(0.1, 10.0, 8, dtype=np.float32).reshape(8, 1, 1, 1),
        "each.bias": values(8),
        "head.weight": values(4, 8),
        "head.bias": values(4),
    }

    def bias(name: str) -> list[str]:
        return [f"{name}.bias"] if biases else []

    nodes = [
        helper.make_node("Conv", ["image", "first.weight", *bias("first")], ["first"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["first"], ["first.relu"]),
        helper.make_node("Conv", ["first.relu", "each.weight", *bias("each")], ["each"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["each"], ["each.relu"]),
        helper.make_node("GlobalAveragePool", ["each.relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.weight", *bias("head")], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if biases or "bias" not in name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def frames(count: int = FRAMES) -> list[Tensor]:
    random = np.random.default_rng(5)
    return [random.normal(0.2, 1.0, (1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def said(_text: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True)
class Quantized:
    """A net before and after."""

    original: onnx.ModelProto
    ranges: dict[str, Range]
    quantized: onnx.ModelProto

    def corrected(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.quantized)
        correct_biases(model, self.original, frames(), 1, said)
        return model


Build = Callable[..., Quantized]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Quantizes a net up to its biases."""

    def make(model: onnx.ModelProto, *, layout: str = "u8s8-7bit", keep_float: Collection[str] = ()) -> Quantized:
        onnx.save(model, tmp_path / "source.onnx")
        quantize.prepare(tmp_path / "source.onnx", tmp_path / "prepared.onnx")
        prepared = onnx.load(tmp_path / "prepared.onnx")
        found = calibrate.ranges(prepared, frames(), calibrate.DEFAULT, 1, said)
        quantized = quantize.laid_out(prepared, found, layout=layout, keep_float=keep_float)
        onnx.checker.check_model(quantized, full_check=True)
        return Quantized(prepared, found, quantized)

    return make


def weight_tables(model: onnx.ModelProto) -> dict[str, Tensor]:
    tables = {name: t.astype(int) for name, t in weights_of(model).items() if name.endswith("weight_quantized")}
    return {name.partition(".")[0]: table for name, table in tables.items()}


def as_added(table: Tensor) -> Tensor:
    """[channels, products]: of a convolution the channels of a pixel are neighbours."""
    return np.moveaxis(table, 1, -1).reshape(len(table), -1) if table.ndim == 4 else table


@pytest.mark.parametrize("layout", ["u8s8", "s8s8"])
def test_where_products_are_added_in_32_bits_every_channel_has_its_127_steps(build: Build, layout: str) -> None:
    tables = weight_tables(build(net(), layout=layout).quantized)

    assert tables.keys() == {"first", "each", "head"}
    for table in tables.values():
        assert (np.abs(table).reshape(len(table), -1).max(axis=1) == 127).all()


def test_where_two_are_added_in_16_bits_two_neighbours_share_128(build: Build) -> None:
    tables = weight_tables(build(net(), layout="u8s8-7bit").quantized)

    for name in ("first", "head"):
        rows = np.abs(as_added(tables[name]))
        between = (rows[:, 1:] + rows[:, :-1]).max(axis=1)
        assert (between <= 128).all(), name
        assert ((between >= 127) | (rows.max(axis=1) == 127)).all(), name
        assert (rows.max(axis=1) >= 64).all(), name  # never fewer than if each had half
    assert (np.abs(tables["each"]).reshape(8, -1).max(axis=1) == 127).all()  # a depthwise kernel adds in 32


def test_each_output_channel_has_a_grid_of_its_own(build: Build) -> None:
    scales = weights_of(build(net()).quantized)["each.weight_scale"]

    assert scales.shape == (8,)
    assert scales.max() / scales.min() > 20  # one grid for all would leave nothing of the small ones


def test_every_grid_is_on_a_range_that_was_found(build: Build) -> None:
    quantized = build(net())
    scales = weights_of(quantized.quantized)

    low, high = quantized.ranges["image"]
    assert scales["image_scale"] == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("make", [net, nets.residual, nets.split_and_concat, nets.transformer])
def test_the_name_of_every_grid_leads_back_to_the_net(build: Build, make: Callable[[], onnx.ModelProto]) -> None:
    quantized = build(make())
    known = {"image", *float_values(quantized.original), *weights_of(quantized.original)}

    pairs = [n for n in quantized.quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 10
    for node in pairs:
        origin = node.output[0]
        for suffix in ("_DequantizeLinear_Output", "_QuantizeLinear_Output", "_quantized"):
            origin = origin.removesuffix(suffix)
        assert origin in known, node.output[0]


def layers_by_bias(model: onnx.ModelProto) -> dict[str, str]:
    """Each layer's output, by the one name that it keeps through quantization: its bias's."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return {node.input[2].removesuffix("_DequantizeLinear_Output"): node.output[0] for node in layers}


def mean_errors(quantized: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, Tensor]:
    """How far the mean of each output channel is off over the frames, by layer."""
    names, twins = layers_by_bias(quantized), layers_by_bias(original)
    found = Probe(quantized, list(names.values()), threads=1)
    wanted = Probe(original, [twins[bias] for bias in names], threads=1)
    errors = {bias: np.zeros(1) for bias in names}
    for frame in frames():
        for bias, (_, value), (_, reference) in zip(names, found(frame), wanted(frame), strict=True):
            spatial = tuple(axis for axis in range(value.ndim) if axis != 1)
            errors[bias] = errors[bias] + (value - reference).mean(axis=spatial) / FRAMES
    return {bias: np.abs(error) for bias, error in errors.items()}


def test_bias_correction_takes_the_mean_error_out_of_every_channel(build: Build) -> None:
    made = build(net())

    before = mean_errors(made.quantized, made.original)
    after = mean_errors(made.corrected(), made.original)

    assert before.keys() == {"first.bias", "each.bias", "head.bias"}
    for bias, error in after.items():
        assert error.mean() < before[bias].mean() / 4, bias
        assert (error <= before[bias] + 1e-6).all(), bias


def test_bias_correction_changes_biases_alone(build: Build) -> None:
    made = build(net())
    before, after = weights_of(made.quantized), weights_of(made.corrected())

    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("bias_quantized") for name in changed)
    assert made.corrected().graph.node == made.quantized.graph.node


@pytest.mark.parametrize("layout", ["u8s8", "u8s8-7bit", "s8s8"])
@pytest.mark.parametrize("make", [nets.residual, nets.split_and_concat, nets.transformer])
def test_bias_correction_helps_every_layout_of_every_kind_of_net(
    build: Build, layout: str, make: Callable[[], onnx.ModelProto]
) -> None:
    made = build(make(), layout=layout)
    (output,) = [value.name for value in made.original.graph.output]

    def error(model: onnx.ModelProto) -> float:
        """Of the mean over the frames: what correction is about."""
        wanted = Probe(made.original, [output], threads=1)
        found = Probe(model, [output], threads=1, literal=True)
        differences = [dict(found(frame))[output] - dict(wanted(frame))[output] for frame in frames()]
        return float(np.abs(np.mean(differences, axis=0)).mean())

    assert error(made.corrected()) < error(made.quantized)


def test_a_bias_that_two_layers_share_is_left_alone(build: Build) -> None:
    model = net()
    each = next(node for node in model.graph.node if "each.bias" in node.input)
    each.input[2] = "first.bias"

    made = build(model)

    assert np.array_equal(
        weights_of(made.corrected())["first.bias_quantized"], weights_of(made.quantized)["first.bias_quantized"]
    )


def test_frames_that_do_not_fit_into_memory_are_left_out() -> None:
    net = nets.Net(1, 3, 640, 640)
    wide = net.conv("image", 3, 96, 3, name="wide")

    assert affordable(nets.residual(), 32) == 32
    assert affordable(net.model(net.conv(wide, 96, 4, 3, name="thin")), 32) == 8  # at the most 162 MB a frame


def test_a_net_without_any_bias_needs_no_correction(build: Build) -> None:
    made = build(net(biases=False))

    assert weights_of(made.corrected()).keys() == weights_of(made.quantized).keys()


def test_the_same_net_and_frames_give_the_same_bytes(build: Build) -> None:
    one, two = build(net()), build(net())

    assert one.ranges == two.ranges
    assert one.corrected().SerializeToString(deterministic=True) == two.corrected().SerializeToString(
        deterministic=True
    )


def test_the_quantized_net_still_says_much_the_same(build: Build) -> None:
    made = build(net())
    (wanted,) = [value for _, value in Probe(made.original, ["scores"], threads=1)(frames()[0])]

    for model in (made.quantized, made.corrected()):
        (found,) = [value for _, value in Probe(model, ["scores"], threads=1)(frames()[0])]
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
