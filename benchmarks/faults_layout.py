"""Faults of calibration, of layouts, in quantized files and for TensorRT; and what --repair makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks.faults_case import Injection, Judged, bent, nodes, put, tensor, variant_hop
from benchmarks.faults_nets import FOLDER, Net, loaded, net
from compiler.evaluation import compare
from compiler.evaluation.compare import Hop
from compiler.graph.onnxfile import Probe
from compiler.quantization import calibrate
from compiler.repair.mending import OnnxBench, mend_onnx
from compiler.repair.repair import Layout
from compiler.targets import target
from compiler.tensorrt import half, preflight
from skerry.execution.device import this_device
from skerry.execution.processing import Preprocessor
from skerry.manifest import why_not

Range = tuple[float, float]
_SEED = 7


def _heard(_text: str) -> None:
    """Progress that nobody reads."""


# --- what mends -------------------------------------------------------------------------------------------------------


class Drafts(OnnxBench):
    """The compiler's own bench, but for the correction of biases, which takes minutes and mends no range."""

    net: Net

    def build(self, layout: Layout) -> onnx.ModelProto:
        return self.net.built(layout)


class ByTheBook(OnnxBench):
    """Builds with ONNX Runtime's writer, which puts every operator that it can on a grid."""

    per_channel = True

    def build(self, layout: Layout) -> onnx.ModelProto:
        onnx.save(layout.graph, FOLDER / "whole.onnx")
        bounds = {n: [{"rmin": np.float32(a), "rmax": np.float32(b)}] for n, (a, b) in layout.ranges.items()}
        quantize_static(
            FOLDER / "whole.onnx",
            FOLDER / "book.onnx",
            _Frames(layout.graph.graph.input[0].name, self.tensors[:1]),
            quant_format=QuantFormat.QDQ,
            per_channel=self.per_channel,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(layout.keep_float),
            extra_options={"TensorQuantOverrides": bounds},
        )
        return onnx.load(FOLDER / "book.onnx")


class OneScale(ByTheBook):
    """The same with one scale for all channels of a layer."""

    per_channel = False


class Halves(OnnxBench):
    """Makes every value fp16 that can be, and asks nothing: as converters do."""

    def build(self, layout: Layout) -> onnx.ModelProto:
        return half.literal(half.convert(layout.graph, layout.keep_float))


class _Frames(CalibrationDataReader):
    def __init__(self, entry: str, tensors: list[np.ndarray]) -> None:
        self._left = iter([{entry: value} for value in tensors])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def mended(
    subject: Net, layout: Layout, kind: type[OnnxBench], tensors: list[np.ndarray] | None = None, limit: float = 0.0
) -> Judged:
    """Builds by a layout that is at fault, holds it to the variant's hop, and lets what is refused be mended."""
    limit = limit or subject.limits.min_sqnr_db
    given = subject.tensors if tensors is None else tensors
    failed = Hop(name="variant", frames=0, sqnr_db=0.0, limit_db=limit)
    bench = kind(subject.plan.layout, subject.reference, subject.limits, given, failed, 1)
    bench.net = subject  # type: ignore[attr-defined]
    model = bench.build(layout)
    hop = bench.measure(model)
    truth = subject.judge(_run(kind, model))
    if hop.failed is None:
        return Judged(truth, None)
    bench.failed = hop
    found = mend_onnx("int8", model, layout, bench, _heard)
    after = subject.judge(_run(kind, bench.build(found.layout))) if found.hop.failed is None else None
    return Judged(truth, hop.failed, found, after)


def _run(kind: type[OnnxBench], model: onnx.ModelProto) -> Callable[..., object] | None:
    return compare.literally(model) if kind is Halves else loaded(model)


# --- calibration ------------------------------------------------------------------------------------------------------


def _ranges(name: str, bend: Callable[[Net, dict[str, Range]], dict[str, Range]]) -> Judged:
    """Wrong ranges, by which the compiler's own layout is written."""
    subject = net(name)
    layout = replace(subject.layout, ranges=bend(subject, dict(subject.layout.ranges)))
    return mended(subject, layout, Drafts)


def clipped(_net: Net, ranges: dict[str, Range]) -> dict[str, Range]:
    """A tenth of each."""
    return {name: (low / 10, high / 10) for name, (low, high) in ranges.items()}


def _random(_net: Net, ranges: dict[str, Range]) -> dict[str, Range]:
    spread = 10 ** np.random.default_rng(_SEED).uniform(-2, 2, len(ranges))
    return {name: (-float(reach), float(reach)) for name, reach in zip(ranges, spread, strict=True)}


def _shifted(_net: Net, ranges: dict[str, Range]) -> dict[str, Range]:
    values = list(ranges.values())
    return dict(zip(ranges, [values[-1], *values[:-1]], strict=True))


def _wild() -> Judged:
    subject = net("resnet")
    tensors = [*subject.tensors[:-1], subject.tensors[-1] * np.float32(100)]
    ranges = calibrate.ranges(subject.layout.graph, tensors, "minmax", 1, _heard)
    return mended(subject, replace(subject.layout, ranges=ranges), Drafts, tensors)


def _black() -> Judged:
    subject = net("clothing")
    entry = subject.interface.inputs[0]
    tensor = np.zeros(entry.shape, entry.dtype)
    Preprocessor(subject.interface)(np.zeros((160, 120, 3), np.uint8), tensor)
    ranges = calibrate.ranges(subject.layout.graph, [tensor, tensor], calibrate.DEFAULT, 1, _heard)
    return mended(subject, replace(subject.layout, ranges=ranges), Drafts, [tensor] * 8)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _measured(subject: Net, graph: onnx.ModelProto) -> Layout:
    """A graph that computes the same as the net, calibrated anew."""
    ranges = calibrate.ranges(graph, subject.tensors, calibrate.DEFAULT, 1, _heard)
    return Layout(graph, frozenset(), ranges)


def _loud_channel() -> Judged:
    subject = net("resnet")

    def change(model: onnx.ModelProto) -> None:
        _scale_channel(model, "blocks.0.conv1", "blocks.0.conv2", 300.0)

    return mended(subject, _measured(subject, bent(subject.layout.graph, change)), Drafts)


def _scale_channel(model: onnx.ModelProto, first: str, then: str, by: float, channel: int | None = 3) -> None:
    """Makes a channel louder, or all, and the next layer undo it; what lies between is a ReLU."""
    weight, bias, after = (tensor(model, n) for n in (f"{first}.weight", f"{first}.weight_bias", f"{then}.weight"))
    chosen = slice(None) if channel is None else channel
    weight[chosen] *= by
    bias[chosen] *= by
    after[:, chosen] /= by
    for name, value in ((f"{first}.weight", weight), (f"{first}.weight_bias", bias), (f"{then}.weight", after)):
        put(model, name, value)


def _depthwise() -> Judged:
    subject = net("clothing")
    graph = subject.layout.graph

    def change(model: onnx.ModelProto) -> None:
        for node in nodes(model, "Conv"):
            weight = tensor(model, node.input[1])
            if weight.shape[1] == 1:  # the channel that says least is made to say nothing: its weights go unseen
                quiet = _quietest(graph, node.input[0], subject.tensors)
                weight[quiet] *= 100 * np.abs(weight).max() / np.abs(weight[quiet]).max()
                put(model, node.input[1], weight)
                _silence(model, node.input[1].replace("two.0", "one.0"), quiet)

    made = bent(graph, change)
    return mended(subject, _measured(subject, made), OneScale)


def _silence(model: onnx.ModelProto, name: str, channel: int) -> None:
    for each in (name, f"{name}_bias"):
        value = tensor(model, each)
        value[channel] = 0.0
        put(model, each, value)


def _quietest(graph: onnx.ModelProto, value: str, tensors: list[np.ndarray]) -> int:
    probe = Probe(graph, [value], threads=1)
    peaks = [next(iter(probe(t)))[1].max(axis=(0, 2, 3)) for t in tensors]
    return int(np.argmin(np.max(peaks, axis=0)))


def _stream() -> Judged:
    """The stream carries a constant 300 in one channel, and every normalization is given what it was given before."""
    subject = net("vit")

    def change(model: onnx.ModelProto) -> None:
        loud = np.zeros(64, np.float32)
        loud[5] = 300.0
        put(model, "place", tensor(model, "place") + loud)
        model.graph.initializer.append(numpy_helper.from_array(loud, "loud"))
        for number, node in enumerate(nodes(model, "LayerNormalization")):
            quiet = helper.make_node("Sub", [node.input[0], "loud"], [f"quiet{number}"], f"quiet{number}")
            model.graph.node.insert(list(model.graph.node).index(node), quiet)
            node.input[0] = f"quiet{number}"

    made = onnx.shape_inference.infer_shapes(bent(subject.layout.graph, change))
    return mended(subject, _measured(subject, made), ByTheBook)


def _boxes() -> Judged:
    subject = net("cells")
    layout = replace(subject.layout, ranges={**subject.layout.ranges})
    return mended(subject, layout, ByTheBook)


# --- the quantized file -----------------------------------------------------------------------------------------------


def _file(name: str, change: Callable[[onnx.ModelProto], None]) -> Judged:
    """A variant's file that says something else."""
    subject = net(name)
    run = loaded(bent(onnx.load(subject.int8), change))
    return Judged(subject.judge(run), "it does not load" if run is None else variant_hop(subject, run))


def _other_axis(model: onnx.ModelProto) -> None:
    for node in nodes(model, "DequantizeLinear"):
        if node.input[0] == "blocks.5.conv1.weight_quantized":
            node.attribute[0].i = 1


def _no_zero(model: onnx.ModelProto) -> None:
    for item in list(model.graph.initializer):
        if item.name.endswith("_zero_point") and item.data_type == onnx.TensorProto.UINT8:
            put(model, item.name, np.zeros_like(tensor(model, item.name)))


def _stale_bias(model: onnx.ModelProto) -> None:
    name = "blocks.4.conv2.weight"
    put(model, f"{name}_quantized", np.rint(tensor(model, f"{name}_quantized") / 4).astype(np.int8))
    put(model, f"{name}_scale", tensor(model, f"{name}_scale") * 4)
    put(model, f"{name}_bias_scale", tensor(model, f"{name}_bias_scale") * 4)


def _saturates() -> Judged:
    facts = this_device()
    plan, requires = next((p, r) for p, r in target.plans([target.load("x86-64-vnni", facts)]) if p.precision == "int8")
    without = [feature for feature in facts.cpu if "vnni" not in feature]
    return Judged(None, why_not(plan.backend, requires, type(facts)(**{**_fields(facts), "cpu": without})))


def _fields(value: object) -> Mapping[str, object]:
    return {name: getattr(value, name) for name in value.__struct_fields__}  # type: ignore[attr-defined]


# --- TensorRT ---------------------------------------------------------------------------------------------------------


def _normalization() -> Judged:
    """Normalizations in parts, of what is made 2,000 times as large before each: they undo it."""
    subject = net("vit")

    def change(model: onnx.ModelProto) -> None:
        constants = {"loud": np.float32(2000), "two": np.float32(2), "eps": np.float32(40), "axes": np.array([-1])}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
        for number, node in enumerate(nodes(model, "LayerNormalization")):
            place = list(model.graph.node).index(node)
            model.graph.node.remove(node)
            for part in reversed(_parts(node, f"norm{number}")):
                model.graph.node.insert(place, part)

    made = onnx.shape_inference.infer_shapes(bent(subject.layout.graph, change))
    return mended(subject, Layout(made, frozenset(), {}), Halves, limit=40.0)


def _parts(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    value, weight, bias = node.input
    steps = [
        ("Mul", [value, "loud"], "loud"),
        ("ReduceMean", [f"{name}_loud", "axes"], "mean"),
        ("Sub", [f"{name}_loud", f"{name}_mean"], "off"),
        ("Pow", [f"{name}_off", "two"], "square"),
        ("ReduceMean", [f"{name}_square", "axes"], "variance"),
        ("Add", [f"{name}_variance", "eps"], "above"),
        ("Sqrt", [f"{name}_above"], "deviation"),
        ("Div", [f"{name}_off", f"{name}_deviation"], "normal"),
        ("Mul", [f"{name}_normal", weight], "scaled"),
    ]
    made = [helper.make_node(kind, given, [f"{name}_{out}"], f"{name}_{out}") for kind, given, out in steps]
    return [*made, helper.make_node("Add", [f"{name}_scaled", bias], [node.output[0]], node.name)]


def _overflow() -> Judged:
    subject = net("resnet")

    def change(model: onnx.ModelProto) -> None:
        _scale_channel(model, "blocks.1.conv1", "blocks.1.conv2", 1e5, None)

    return mended(subject, Layout(bent(subject.layout.graph, change), frozenset(), {}), Halves, limit=40.0)


def _not_half() -> Judged:
    subject = net("resnet")
    plan, requires = next(
        (p, r) for p, r in target.plans([target.load("jetson-orin-nano", this_device())]) if p.precision == "fp16"
    )
    said = preflight.model_refusals(subject.layout.graph, plan, requires)
    sound = half.to_half(subject.layout.graph, subject.layout.ranges)[0]
    assert not preflight.model_refusals(sound, plan, requires)
    return Judged(None, "; ".join(said) or None)


FAULTS: dict[str, Injection] = {
    "one-wild-frame": _wild,
    "ranges-clipped": lambda: _ranges("resnet", clipped),
    "random-ranges": lambda: _ranges("resnet", _random),
    "another-nets-table": lambda: _ranges("vit", _shifted),
    "lens-cap-on": _black,
    "one-loud-channel": _loud_channel,
    "depthwise-on-one-scale": _depthwise,
    "stream-on-grids": _stream,
    "scale-along-another-axis": lambda: _file("resnet", _other_axis),
    "zero-point-taken-for-zero": lambda: _file("clothing", _no_zero),
    "bias-on-a-stale-scale": lambda: _file("resnet", _stale_bias),
    "sums-that-saturate": _saturates,
    "normalization-overflows": _normalization,
    "products-overflow": _overflow,
    "fp16-that-is-fp32": _not_half,
    "boxes-on-one-grid": _boxes,
}
