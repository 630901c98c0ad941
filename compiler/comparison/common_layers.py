"""How far two graphs are apart, layer by layer: the values that both know by one name."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.evidence.layers import MOVES, WEIGHTED, behind_pairs, requested, sqnr, value_shapes
from compiler.graph.onnxfile import float_values


class Value(msgspec.Struct, frozen=True):
    """One value that two graphs share: what computes it there, in which precision, and how far apart it is.

    Attributes:
        layer: whose weights make it, named as the user's model names it; the value's own name where no weights do.
    """

    name: str
    layer: str
    kind: str
    precision_a: str
    precision_b: str
    sqnr_db: float


class Compared(msgspec.Struct, frozen=True):
    """The shared values in the graph's order; ``known_a`` and ``known_b`` are how many each graph has."""

    values: list[Value]
    known_a: int
    known_b: int


def compare(a: onnx.ModelProto, b: onnx.ModelProto, tensors: Sequence[NDArray[np.generic]]) -> Compared:
    """Runs both on the same inputs, which either graph takes as they are."""
    here, there = _values(a), _values(b)
    shapes_a, shapes_b = value_shapes(a), value_shapes(b)
    common = [v for v in here if v in there and shapes_a.get(v) == shapes_b.get(v)]
    behind_a, behind_b = behind_pairs(a), behind_pairs(b)
    pairs = {behind_a.get(v, v): behind_b.get(v, v) for v in common}
    apart = sqnr(a, b, pairs, tensors)
    asked_a, asked_b = requested(a), requested(b)
    values = [
        Value(
            name=v,
            layer=_layer(here[v], v),
            kind=here[v].op_type,
            precision_a=asked_a[here[v].output[0]],
            precision_b=asked_b[there[v].output[0]],
            sqnr_db=apart[behind_a.get(v, v)],
        )
        for v in common
    ]
    return Compared(values, len(here), len(there))


def _layer(node: onnx.NodeProto, value: str) -> str:
    """A shipped graph keeps no modules' paths, but its weights are called after them: "blocks.0.conv.weight"."""
    module = node.input[1].rpartition(".")[0] if node.op_type in WEIGHTED else ""
    return module or value


def _values(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The float values that a layer computes, and which node that is; Q/DQ pairs and what moves values hand them on."""
    floats = set(float_values(model))
    nodes = [n for n in model.graph.node if n.op_type not in {*MOVES, "QuantizeLinear", "DequantizeLinear"}]
    found = {value: node for node in nodes for value in node.output if value in floats}
    makers = {value: node for node in nodes for value in node.output}
    for node in model.graph.node:  # an output behind its pair: the layer that it is of lies before the pair
        if node.op_type == "DequantizeLinear" and node.output[0] in {o.name for o in model.graph.output}:
            before = next((n.input[0] for n in model.graph.node if node.input[0] in n.output), "")
            if before in makers:
                found[node.output[0]] = makers[before]
    return found
