"""From fp32 to a graph that says itself what is fp16: every value typed, every cast written down.

TensorRT 11 knows no "fp16 allowed" any more, and 10 has deprecated it: what the graph says is what is built. Inputs and
outputs stay fp32, so that a caller sees no difference.

fp16 holds 65,504 at most. What would leave it, or is known to, stays fp32: an *island*, with its reason. A range that
calibration found is taken times `RESERVE`: the next frame may be brighter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.graphview import Array, Graph, captured, name_of, without_unused

LARGEST = 65504.0
RESERVE = 4.0
_SMALLEST = 2.0**-24  # what is nearer to zero becomes zero

_LINKS = {"QuantizeLinear", "DequantizeLinear"}
# Their float type is given by an attribute or by meaning; a reader that wants fp16 casts.
_FIXED = {"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size", "NonMaxSuppression"}
# Inputs that are fp32 in any case: the scales of a Resize (ONNX operator specification).
_FLOAT_INPUTS = {"Resize": {2}, "Upsample": {1}}
_SUMS = {"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool", "CumSum"}
_SQUARE_SUMS = {"ReduceSumSquare", "ReduceL2", "LpNormalization", "GlobalLpPool"}
_ALWAYS = {
    "Softmax": "it sums exponentials",
    "LogSoftmax": "it sums exponentials",
    "ReduceLogSumExp": "it sums exponentials",
    "InstanceNormalization": "its variance is computed in the graph's precision",
    "GroupNormalization": "its variance is computed in the graph's precision",
}

Range = tuple[float, float]


class Island(msgspec.Struct, frozen=True):
    """A node that stays fp32, and why."""

    node: str
    kind: str
    why: str


def to_half(
    model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[Island]]:
    """``model`` in fp16 as far as it is safe, strongly typed, and its islands in the graph's order.

    Args:
        ranges: least and greatest value of each float value, as calibration found them.
        keep_float: names of nodes that stay fp32 in any case.
    """
    islands = analyse(model, ranges, keep_float=keep_float)
    return convert(model, {island.node for island in islands}), islands


# --- what must stay fp32 ----------------------------------------------------------------------------------------------


def analyse(model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()) -> list[Island]:
    """The nodes that must stay fp32, in the graph's order."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type in _FIXED | _LINKS or not any(_is_float(graph, v) for v in [*node.input, *node.output]):
            continue
        why = "asked for" if name_of(node) in keep_float else _danger(graph, node, ranges)
        if why:
            found.append(Island(name_of(node), node.op_type, why))
    return found


def _is_float(graph: Graph, value: str) -> bool:
    return graph.types.get(value) == TensorProto.FLOAT


def _danger(graph: Graph, node: onnx.NodeProto, ranges: Mapping[str, Range]) -> str | None:
    """Why ``node`` may leave what fp16 holds, or None if it stays inside."""
    if node.domain not in ("", "ai.onnx"):
        return f"nothing is known of {node.domain}.{node.op_type}"
    if any(True for _ in captured(node)):
        return "its subgraphs are not looked into"
    if node.op_type in _ALWAYS:
        return _ALWAYS[node.op_type]
    values = [v for v in [*node.input, *node.output] if _is_float(graph, v)]
    constants = {v: c for v in values if (c := graph.constant(v)) is not None}
    return (
        next((why for name, constant in constants.items() if (why := _unfit(name, constant))), None)
        or next((why for v in values if v in ranges and v not in constants and (why := _too_far(v, ranges[v]))), None)
        or _inside(graph, node, ranges)
    )


def _unfit(name: str, constant: Array) -> str | None:
    finite = np.abs(constant[np.isfinite(constant)].astype(np.float64))
    if finite.size and finite.max() > LARGEST:
        return f"constant {name} reaches {finite.max():.3g}, fp16 holds {LARGEST:.0f}"
    if constant.size == 1 and 0 < finite.min(initial=1.0) < _SMALLEST:
        return f"constant {name} is {finite.min():.3g}, which fp16 rounds to zero"
    return None


def _too_far(name: str, found: Range) -> str | None:
    reach = _reach(found)
    if not reach * RESERVE <= LARGEST:  # also where it is not a number
        return f"{name} reaches {reach:.4g}; with {RESERVE:.0f} times in reserve fp16's {LARGEST:.0f} are not enough"
    return None


def _reach(found: Range) -> float:
    return max(abs(found[0]), abs(found[1]))


def _inside(graph: Graph, node: onnx.NodeProto, ranges: Mapping[str, Range]) -> str | None:
    """What an operator computes on the way and no range shows."""
    if node.op_type == "Exp":
        high = ranges[node.input[0]][1] if node.input[0] in ranges else math.inf
        return None if high + math.log(RESERVE) <= math.log(LARGEST) else f"the exponential of {high:.4g}"
    bound = _bound(graph, node)
    if bound is None:
        return None
    times, power = bound
    if node.input[0] not in ranges:
        return f"{node.op_type} over values whose range is not known"
    reach = _reach(ranges[node.input[0]])
    if times * (reach * RESERVE) ** power > LARGEST:
        what = f"a sum of {times:.0f} values" if times > 1 else "a power"
        return f"{what} of up to {reach:.4g}" + (f" to the {power:.3g}" if power != 1 else "")
    return None


def _bound(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """How many inputs an operator adds up, and to which power it takes each; None if it does neither."""
    if node.op_type == "Pow":
        exponent = graph.constant(node.input[1])
        return 1.0, float(exponent.max()) if exponent is not None and exponent.size else math.inf
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return 1.0, 2.0
    if node.op_type in _SUMS | _SQUARE_SUMS:
        return _summed(graph, node), 2.0 if node.op_type in _SQUARE_SUMS else 1.0
    return None


def _summed(graph: Graph, node: onnx.NodeProto) -> float:
    """How many values one result of a reduction adds up: the input's size over the output's."""
    if node.op_type == "AveragePool":
        return float(np.prod(next(a.ints for a in node.attribute if a.name == "kernel_shape")))
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or after is None or None in before[1:] or None in after[1:]:
        return LARGEST  # not known: as good as unbounded
    if node.op_type in ("CumSum", "LpNormalization"):
        return float(max(dim or 1 for dim in before))
    return float(np.prod([dim or 1 for dim in before]) / np.prod([dim or 1 for dim in after]))


# --- writing the types ------------------------------------------------------------------------------------------------


def convert(model: onnx.ModelProto, floats: Collection[str]) -> onnx.ModelProto:
    """``model`` with every float node in fp16, but for those called in ``floats`` and what cannot be."""
    return _Typing(model, floats).write()


class _Typing:
    """Writes a graph anew: each node in its type, a cast wherever two types meet."""

    def __init__(self, model: onnx.ModelProto, floats: Collection[str]) -> None:
        self._graph = Graph(model)
        self._floats = {name_of(n) for n in self._graph.nodes if self._stays(n)} | set(floats)
        self._links_follow()
        inner = {name for node in self._graph.nodes for name in captured(node)}
        self._float_names = self._graph.outputs | inner  # read by what expects fp32 under this very name
        given = [*model.graph.input, *model.graph.initializer]
        self._typed: dict[tuple[str, int], str] = {(v.name, TensorProto.FLOAT): v.name for v in given}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def write(self) -> onnx.ModelProto:
        for node in self._graph.nodes:
            self._add(node)
        made = onnx.ModelProto()
        made.CopyFrom(self._graph.model)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(self._tensors)
        return without_unused(made)

    def _stays(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _FIXED or node.domain not in ("", "ai.onnx") or any(True for _ in captured(node))

    def _links_follow(self) -> None:
        """A Q/DQ pair is of the type of those that read it, so that no cast stands between it and its layer."""
        for node in reversed(self._graph.nodes):
            if node.op_type not in _LINKS:
                continue
            readers = self._graph.consumers.get(node.output[0], [])
            scale = self._graph.constant(node.input[1])
            vanishes = scale is None or bool((scale.astype(np.float16) == 0).any())
            if vanishes or (readers and all(name_of(reader) in self._floats for reader in readers)):
                self._floats.add(name_of(node))

    def _add(self, node: onnx.NodeProto) -> None:
        kind = TensorProto.FLOAT if name_of(node) in self._floats else TensorProto.FLOAT16
        made = onnx.NodeProto()
        made.CopyFrom(node)
        keep = _FLOAT_INPUTS.get(node.op_type, set())
        for index, value in enumerate(node.input):
            if value and _is_float(self._graph, value):
                made.input[index] = self._as(value, TensorProto.FLOAT if index in keep else kind)
        self._nodes.append(made)
        for index, value in enumerate(node.output):
            if value and _is_float(self._graph, value):
                renamed = kind == TensorProto.FLOAT16 and value in self._float_names
                made.output[index] = self._typed[value, kind] = f"{value}_fp16" if renamed else value
                if renamed:
                    self._cast(value, value, TensorProto.FLOAT)

    def _as(self, value: str, kind: int) -> str:
        """The name under which ``value`` is of type ``kind``; makes it if need be."""
        if (value, kind) not in self._typed:
            name = f"{value}_{'fp16' if kind == TensorProto.FLOAT16 else 'fp32'}"
            constant = self._graph.constant(value)
            if constant is None:
                self._cast(value, name, kind)
            else:
                with np.errstate(over="ignore"):  # an infinity stays one; what is finite has been looked at
                    self._tensors.append(numpy_helper.from_array(constant.astype(np.float16), name))
                self._typed[value, kind] = name
        return self._typed[value, kind]

    def _cast(self, value: str, target: str, kind: int) -> None:
        """Makes ``value`` of type ``kind``, called ``target``, from what it is in the other type."""
        other = TensorProto.FLOAT if kind == TensorProto.FLOAT16 else TensorProto.FLOAT16
        self._nodes.append(helper.make_node("Cast", [self._typed[value, other]], [target], f"{target}_cast", to=kind))
        self._typed[value, kind] = target


# --- running it without a GPU -----------------------------------------------------------------------------------------


def literal(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph in fp32 that rounds every fp16 value of ``model`` where it stands: fp16 storage, fp32 sums.

    ONNX Runtime has no fp16 kernels on most CPUs: it computes a run of fp16 nodes in fp32 without rounding in between,
    so that an overflow would not be seen.
    """
    types = Graph(model).types
    halves = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    made.graph.node.extend(part for node in model.graph.node for part in _rounded(node, halves))
    return made


def _rounded(node: onnx.NodeProto, halves: Collection[str]) -> Iterable[onnx.NodeProto]:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    rounding = []
    for index, value in enumerate(node.output):
        if value in halves:
            exact, stored = f"{value}_exact", f"{value}_stored"
            made.output[index] = exact
            rounding.append(helper.make_node("Cast", [exact], [stored], to=TensorProto.FLOAT16))
            rounding.append(helper.make_node("Cast", [stored], [value], to=TensorProto.FLOAT))
    for item in made.attribute:
        if node.op_type == "Cast" and item.name == "to" and item.i == TensorProto.FLOAT16:
            item.i = TensorProto.FLOAT
    return [made, *rounding]
