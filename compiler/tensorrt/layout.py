"""Q/DQ pairs as TensorRT wants them, written down: symmetric int8, and nothing left for the builder to guess.

The rules, each with its source (docs/tensorrt.md tells them at length):

- scales are symmetric, zero points 0, int8 in [-128, 127] (TensorRT's IQuantizeLayer);
- weights per output channel: axis 0 of Conv, 1 of ConvTranspose, the columns of a matrix; activations per tensor;
- pairs stand on the inputs of weighted layers alone, so that Conv, bias and activation fuse; biases stay as they are;
- of a residual sum only the skip is quantized, the other side fuses with its convolution; a transformer's residual
  stream is not quantized at all (ViT-B: 84.5 % with, 5 % without this rule);
- what is concatenated is on one grid, and so is what only moves values about;
- a layer too thin for int8 to pay stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler import half as halves
from compiler.graphview import Array, Graph, attribute, name_of, opset_of, without_unused
from skerry.errors import CompileError

# (input with the weights, axis of the output channels) by operator; Gemm's axis depends on transB.
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
# One grid on both sides: they move values, or take the greatest.
_MOVES = {"MaxPool", "Split", "Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_THIN = 16  # channels, rows or columns: below, int8 costs more than it saves (NVIDIA Model Optimizer's own limit)
_STEP = 2.0**-20  # the least scale: fp16 still holds it to 6 %, and the least weight that it makes 0 is 1e-6
_LEAST_STEP_FP32 = 1e-12
_OPSET, _OPSET_HALF = 13, 19  # the first with scales per channel, and with scales in fp16

Range = tuple[float, float]


class Layout(msgspec.Struct, frozen=True):
    """What is quantized and what is not.

    Attributes:
        layers: names of the nodes that become int8.
        skips: residual sums by name, with the value that is quantized as their skip.
        reach: greatest magnitude of each value that gets a pair, unified where values share a grid.
        left: why, by name, the other weighted nodes stay as they are.
    """

    layers: list[str]
    skips: dict[str, str]
    reach: dict[str, float]
    left: dict[str, str]


def lay_out(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    keep_float: Collection[str] = (),
    half: bool = True,
) -> onnx.ModelProto:
    """``model`` with explicit Q/DQ pairs, strongly typed.

    Args:
        model: fp32, constants folded and batch norms merged (`compiler.quantize.prepare`).
        ranges: least and greatest value of each float value, as calibration found them.
        keep_float: names of nodes that do not become int8.
        half: what is not int8 becomes fp16 where it is safe; else it stays fp32.

    Raises:
        CompileError: a value has no range.
    """
    layout = decide(model, ranges, keep_float=keep_float)
    quantized = write(model, layout, half=half)
    return halves.to_half(quantized, ranges)[0] if half else quantized


# --- what becomes int8 ------------------------------------------------------------------------------------------------


def decide(model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()) -> Layout:
    """Which layers become int8, and on which grids. Raises `CompileError` if a value has no range."""
    graph = Graph(model)
    left = {name_of(node): why for node in graph.nodes if (why := _why_not(graph, node, keep_float))}
    layers = [n for n in graph.nodes if n.op_type in WEIGHTED and name_of(n) not in left]
    skips = {name_of(n): skip for n in graph.nodes if (skip := _skip(graph, n, {name_of(layer) for layer in layers}))}
    values = dict.fromkeys([*(n.input[0] for n in layers), *skips.values()])
    grids = _shared_grids(graph, values)
    reach = {value: max(_reach(ranges, v, graph) for v in grids.get(value, [value])) for value in values}
    return Layout([name_of(n) for n in layers], skips, reach, left)


def _why_not(graph: Graph, node: onnx.NodeProto, keep_float: Collection[str]) -> str | None:
    """Why a weighted node does not become int8, or None if it does (or has no weights to begin with)."""
    if node.op_type not in WEIGHTED:
        return None
    if name_of(node) in keep_float:
        return "asked for"
    weights = graph.constant(node.input[1])
    if weights is None or weights.dtype != np.float32:
        return "its weights are computed"
    if graph.constant(node.input[0]) is not None:
        return "its input is a constant"
    if node.op_type in _CONVOLUTIONS:
        return _thin_convolution(node, weights)
    return _thin_matrix(graph, node, weights)


def _thin_convolution(node: onnx.NodeProto, weights: Array) -> str | None:
    group = attribute(node, "group", 1)
    into, out = weights.shape[:2] if node.op_type == "ConvTranspose" else weights.shape[1::-1]
    if node.op_type == "ConvTranspose" and group > 1:
        return "grouped transposed convolutions have no int8 kernels to rely on"
    if group > 1 and into == 1 and out == group:
        return None if group % 8 == 0 else f"{group} channels are not a multiple of 8"
    if min(into, out // group if node.op_type == "Conv" else out) < _THIN:
        return f"{into} to {out // group} channels are fewer than {_THIN}"
    if into % 8 or out % 8:
        return f"{into} to {out} channels are not multiples of 8"
    return None


def _thin_matrix(graph: Graph, node: onnx.NodeProto, weights: Array) -> str | None:
    if weights.ndim != 2:
        return "its weights are no matrix"
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or _scaled(node)):
        return "it scales or transposes its input"
    if min(weights.shape) < _THIN:
        return f"a matrix of {weights.shape[0]}x{weights.shape[1]} is too thin"
    shape = graph.shape(node.input[0])
    if shape is not None and None not in shape and int(np.prod(shape[:-1])) == 1:  # type: ignore[arg-type]
        return "one row times a matrix is bound by memory"
    return None


def _scaled(gemm: onnx.NodeProto) -> bool:
    return any(a.name in ("alpha", "beta") and a.f != 1.0 for a in gemm.attribute)


def _skip(graph: Graph, node: onnx.NodeProto, layers: Collection[str]) -> str | None:
    """The skip of a residual sum behind a quantized convolution, if ``node`` is one and there is no constant in it."""
    if node.op_type != "Add" or any(graph.constant(value) is not None for value in node.input):
        return None
    fused = [_convolution(graph, value, layers) for value in node.input]
    behind = [index for index, found in enumerate(fused) if found is not None]
    shapes = [graph.shape(value) for value in node.input]
    if not behind or node.input[0] == node.input[1] or shapes[0] != shapes[1]:
        return None
    longer = max(behind, key=lambda index: graph.depth[node.input[index]])  # the other one, if both are, projects
    return str(node.input[1 - longer])


def _convolution(graph: Graph, value: str, layers: Collection[str]) -> onnx.NodeProto | None:
    """The quantized convolution that makes ``value`` for one reader alone: with that one it fuses."""
    node = graph.producer.get(value)
    alone = len(graph.consumers.get(value, [])) == 1 and value not in graph.outputs
    fits = node is not None and node.op_type in _CONVOLUTIONS and name_of(node) in layers
    return node if fits and alone else None


def _reach(ranges: Mapping[str, Range], value: str, graph: Graph) -> float:
    if value not in ranges:
        maker = graph.producer.get(value)
        raise CompileError(
            f"value {value} ({maker.op_type if maker else 'input'}) has no range; expected one for each float value: "
            "calibrate the very graph that is laid out"
        )
    return max(abs(ranges[value][0]), abs(ranges[value][1]))


def _shared_grids(graph: Graph, values: Iterable[str]) -> dict[str, list[str]]:
    """By value with a pair: all values that must be on its grid, itself included.

    From each pair backwards through what only moves values, and through Concat to everything that is concatenated; what
    meets there is one group.
    """
    group: dict[str, str] = {}

    def root(value: str) -> str:
        while group.setdefault(value, value) != value:
            value = group[value]
        return value

    members = {value: _upstream(graph, value) for value in values}
    for value, found in members.items():
        for other in found:
            group[root(other)] = root(value)
    together: dict[str, list[str]] = {}
    for value in group:
        together.setdefault(root(value), []).append(value)
    return {value: together[root(value)] for value in members}


def _upstream(graph: Graph, value: str) -> list[str]:
    """The values that ``value`` is only moved or concatenated from, itself included."""
    found, todo = [], [value]
    while todo:
        found.append(value := todo.pop())
        node = graph.producer.get(value)
        if node is None or _is_constant(graph, value):
            continue
        if node.op_type == "Concat":
            todo.extend(v for v in node.input if not _is_constant(graph, v) and v not in found)
        elif node.op_type in _MOVES or _is_nearest(node):
            todo.append(node.input[0])
    return found


def _is_constant(graph: Graph, value: str) -> bool:
    return graph.constant(value) is not None


def _is_nearest(node: onnx.NodeProto) -> bool:
    return node.op_type == "Resize" and all(a.s == b"nearest" for a in node.attribute if a.name == "mode")


# --- writing the pairs ------------------------------------------------------------------------------------------------


def write(model: onnx.ModelProto, layout: Layout, *, half: bool) -> onnx.ModelProto:
    """``model``, still fp32, with the pairs of ``layout``; with ``half`` the scales are such that fp16 holds them.

    Raises:
        CompileError: the opset is too old for Q/DQ pairs of that kind.
    """
    if (opset := opset_of(model)) < (least := _OPSET_HALF if half else _OPSET):
        raise CompileError(f"the graph is of opset {opset}, its Q/DQ pairs need {least}; raise it to 20")
    graph = Graph(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    writer = _Writer(graph, layout, half=half)
    for entry in model.graph.input:
        writer.pair(entry.name)
    for node in graph.nodes:
        writer.node(node)
        for output in node.output:
            writer.pair(output)
    made.graph.node.extend(writer.nodes)
    made.graph.initializer.extend(writer.tensors)
    return without_unused(made)


class _Writer:
    def __init__(self, graph: Graph, layout: Layout, *, half: bool) -> None:
        self._graph, self._layout, self._half = graph, layout, half
        self._weights: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, node: onnx.NodeProto) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        name = name_of(node)
        if name in self._layout.skips:
            skip = self._layout.skips[name]
            made.input[list(node.input).index(skip)] = f"{skip}_dq"
        if name in self._layout.layers:
            made.input[0] = f"{node.input[0]}_dq"
            made.input[1] = self._weight(node)
        self.nodes.append(made)

    def pair(self, value: str) -> None:
        """Q and DQ behind ``value``, if the layout wants it: one pair for all who read it quantized."""
        if value not in self._layout.reach:
            return
        scale = _scale(np.array(self._layout.reach[value]), half=self._half)
        scales = [self._tensor(f"{value}_scale", scale), self._tensor(f"{value}_zero", np.array(0, np.int8))]
        self.nodes.append(helper.make_node("QuantizeLinear", [value, *scales], [f"{value}_q"], f"{value}_q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", *scales], [f"{value}_dq"], f"{value}_dq"))

    def _weight(self, node: onnx.NodeProto) -> str:
        """The weights of a layer as int8 with a scale per output channel, behind their DQ."""
        name, axis = node.input[1], 0 if attribute(node, "transB", 0) else WEIGHTED[node.op_type]
        if (name, axis) not in self._weights:
            self._weights[name, axis] = f"{name}_dq{axis}"
            weights = self._graph.constant(name)
            assert weights is not None  # noqa: S101 - `decide` looked
            others = tuple(i for i in range(weights.ndim) if i != axis)
            scale = _scale(np.abs(weights).max(axis=others), half=self._half)
            steps = np.rint(
                weights.astype(np.float32)
                / scale.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
            )
            inputs = [
                self._tensor(f"{name}_q{axis}", np.clip(steps, -127, 127).astype(np.int8)),
                self._tensor(f"{name}_scale{axis}", scale),
                self._tensor(f"{name}_zero{axis}", np.zeros(scale.shape, np.int8)),
            ]
            made = helper.make_node("DequantizeLinear", inputs, [f"{name}_dq{axis}"], f"{name}_dq{axis}", axis=axis)
            self.nodes.append(made)
        return self._weights[name, axis]

    def _tensor(self, name: str, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name


def _scale(reach: Array, *, half: bool) -> Array:
    """Steps of a symmetric grid that reaches ``reach`` with 127 of them; fp32, but with ``half`` of fp16's values."""
    exact = np.asarray(reach, np.float64) / 127.0
    if not half:
        return np.maximum(exact, _LEAST_STEP_FP32).astype(np.float32)
    rounded = np.minimum(np.maximum(exact, _STEP), halves.LARGEST).astype(np.float16)
    up = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)  # what is largest still fits
    return np.asarray(np.minimum(up, np.float16(halves.LARGEST)), np.float32)


# --- reading them -----------------------------------------------------------------------------------------------------


def requested(model: onnx.ModelProto) -> dict[str, str]:
    """The precision that a strongly typed graph asks of each weighted node, by name: int8, fp16 or fp32."""
    graph = Graph(model)
    return {name_of(node): _asked(graph, node) for node in graph.nodes if node.op_type in WEIGHTED}


def _asked(graph: Graph, node: onnx.NodeProto) -> str:
    makers = [graph.producer.get(value) for value in node.input[:2]]
    if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return "int8"
    return "fp16" if graph.types.get(node.output[0]) == TensorProto.FLOAT16 else "fp32"
