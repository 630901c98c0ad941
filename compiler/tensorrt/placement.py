"""Which layers become int8, which sums have a quantized skip, and on which grids. Rules: `compiler.tensorrt.layout`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import numpy as np
import onnx

from compiler.graph.view import Array, Graph, attribute, name_of
from compiler.tensorrt.grids import shared_grids
from compiler.tensorrt.islands import Range
from skerry.errors import CompileError

# (input with the weights, axis of the output channels) by operator; Gemm's axis depends on transB.
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_THIN = 16  # channels, rows or columns: below, int8 costs more than it saves (NVIDIA Model Optimizer's own limit)


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


def decide(model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()) -> Layout:
    """Which layers become int8, and on which grids. Raises `CompileError` if a value has no range."""
    graph = Graph(model)
    left = {name_of(node): why for node in graph.nodes if (why := _why_not(graph, node, keep_float))}
    layers = [n for n in graph.nodes if n.op_type in WEIGHTED and name_of(n) not in left]
    skips = {name_of(n): skip for n in graph.nodes if (skip := _skip(graph, n, {name_of(layer) for layer in layers}))}
    values = dict.fromkeys([*(n.input[0] for n in layers), *skips.values()])
    grids = shared_grids(graph, values)
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
        return _thin_convolution(node, weights) or _one_row(graph.shape(node.output[0]), channels=1)
    return _thin_matrix(graph, node, weights)


def _thin_convolution(node: onnx.NodeProto, weights: Array) -> str | None:
    group = attribute(node, "group", 1)
    into, out = weights.shape[:2] if node.op_type == "ConvTranspose" else weights.shape[1::-1]
    if node.op_type == "ConvTranspose" and group > 1:
        return "grouped transposed convolutions have no int8 kernels to rely on"
    if group > 1 and into == 1 and out == group:
        return "a depthwise layer loses most in int8 and gains least"  # docs/decisions/0010
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
    return _one_row(graph.shape(node.input[0]), channels=-1)


def _one_row(shape: list[int | None] | None, channels: int) -> str | None:
    """Whether a layer over values of ``shape`` is a vector times a matrix, as behind a global mean."""
    if shape is None or None in shape:
        return None
    rows = [dim for axis, dim in enumerate(shape) if axis != channels % len(shape)]
    return "one row times a matrix is bound by memory" if np.prod(rows) == 1 else None  # type: ignore[arg-type]


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
