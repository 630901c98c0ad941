"""What must not become fp16, and why: a node that stays fp32 is an *island*.

fp16 holds 65,504 at most. What would leave it, or is known to, stays as it is. A range that calibration found is taken
times `RESERVE`: the next frame may be brighter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import msgspec
import numpy as np
import onnx

from compiler.graph.view import ONNX, Array, Graph, name_of, subgraphs

LARGEST = 65504.0
RESERVE = 4.0
_SMALLEST = 2.0**-24  # what is nearer to zero becomes zero

LINKS = {"QuantizeLinear", "DequantizeLinear"}
# Their float type is given by an attribute or by meaning; a reader that wants fp16 casts.
FIXED = {"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size", "NonMaxSuppression"}
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


def analyse(model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()) -> list[Island]:
    """The nodes that must stay fp32, in the graph's order."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type in FIXED | LINKS or not any(graph.is_float(v) for v in [*node.input, *node.output]):
            continue
        why = "asked for" if name_of(node) in keep_float else _danger(graph, node, ranges)
        if why:
            found.append(Island(name_of(node), node.op_type, why))
    return found


def _danger(graph: Graph, node: onnx.NodeProto, ranges: Mapping[str, Range]) -> str | None:
    """Why ``node`` may leave what fp16 holds, or None if it stays inside."""
    if node.domain not in ONNX:
        return f"nothing is known of {node.domain}.{node.op_type}"
    if any(subgraphs(node)):
        return "its subgraphs are not looked into"
    if node.op_type in _ALWAYS:
        return _ALWAYS[node.op_type]
    values = [v for v in [*node.input, *node.output] if graph.is_float(v)]
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
