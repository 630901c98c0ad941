"""Fusion units: what a runtime runs as one kernel, and so what a search switches between int8 and float as one.

A unit begins at a node with weights. What follows, up to the next weighted node, belongs to it: batch norm, activation,
pooling, and the residual Add, which fuses with the branch that arrives last. "Last" is the number of weighted nodes on
the longest way from the input, so that a shortcut's convolution does not take the Add. The two products of attention
and what stands between them are one unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx

from compiler.graph.view import COMPUTES, MOVES, WEIGHTED, Graph, attribute

# What some layout, ours or TensorRT's, may put on a grid. BatchNormalization is gone from a prepared CNN but for those
# that no convolution takes up.
QUANTIZABLE = WEIGHTED | MOVES | COMPUTES | {"BatchNormalization"}


@dataclass(frozen=True)
class Unit:
    """Nodes that are quantized together or not at all.

    Attributes:
        name: of its first weighted node.
        kind: conv, depthwise, linear, attention, matmul (of two computed operands), or other (nothing weighted).
        nodes: names of its quantizable nodes, in the graph's order.
        macs: multiplications with accumulation, for the batch that was exported.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    macs: int


@dataclass(eq=False)
class _Growing:
    """A unit that is being put together."""

    kind: str
    depth: int
    first: int
    macs: int = 0
    members: list[int] = field(default_factory=list)


def fusion_units(model: onnx.ModelProto) -> list[Unit]:
    """The units of a prepared fp32 graph, in its order: every quantizable node is in exactly one.

    Nodes must have names, each its own (`compiler.quantization.quantize.prepare` gives them).
    """
    graph = Graph(model)
    units, early = _grow(graph)
    units += _adopt(graph, early, units)
    return [_finished(graph, unit) for unit in sorted(units, key=lambda unit: unit.first) if unit.members]


def _grow(graph: Graph) -> tuple[list[_Growing], list[int]]:
    """Walks down the graph. Returns the units, and the nodes before any weighted one."""
    units: list[_Growing] = []
    early: list[int] = []
    of: dict[str, _Growing] = {}  # the unit that a value comes out of
    attended: dict[str, _Growing] = {}  # values behind a softmax, by the product that the softmax weighs
    for number, node in enumerate(graph.nodes):
        if not graph.computes_floats(node):
            continue
        data = graph.data(node)
        weighing = next((attended[v] for v in data if v in attended), None)
        above = [of[v] for v in data if v in of]
        unit = max(above, key=lambda u: (u.depth, u.first), default=None)
        if node.op_type in WEIGHTED:
            unit = _begun(graph, node, number, above, weighing)
            units += [unit] if unit not in units else []
            unit.macs += graph.macs(node)
            weighing = None
        elif node.op_type == "Softmax" and unit is not None and unit.kind == "matmul":
            weighing = unit
        attended.update((value, weighing) for value in node.output if weighing is not None)
        if unit is None:
            early.append(number)
            continue
        of.update(dict.fromkeys(node.output, unit))
        if node.op_type in QUANTIZABLE:
            unit.members.append(number)
    return units, early


def _begun(
    graph: Graph, node: onnx.NodeProto, number: int, above: Iterable[_Growing], weighing: _Growing | None
) -> _Growing:
    """The unit of a weighted node: a new one, but for the second product of attention."""
    if weighing is not None and graph.weight(node) is None:
        weighing.kind = "attention"
        weighing.depth += 1
        return weighing
    return _Growing(_kind(graph, node), 1 + max((u.depth for u in above), default=0), number)


def _kind(graph: Graph, node: onnx.NodeProto) -> str:
    weight = graph.weight(node)
    if weight is None:
        return "matmul"
    if node.op_type not in ("Conv", "ConvTranspose"):
        return "linear"
    group = attribute(node, "group", 1)
    return "depthwise" if group > 1 and group == graph.sizes(node.input[0])[1] else "conv"


def _adopt(graph: Graph, early: list[int], units: list[_Growing]) -> list[_Growing]:
    """Gives the nodes before any weighted one to the unit that uses them; returns units of those that none does."""
    owner = {id(graph.nodes[n]): unit for unit in units for n in unit.members}
    alone = _Growing("other", 0, -1)
    for number in reversed(early):
        node = graph.nodes[number]
        below = [owner[id(user)] for v in node.output for user in graph.consumers[v] if id(user) in owner]
        unit = min(below, key=lambda u: (u.depth, u.first), default=alone)
        owner[id(node)] = unit
        if node.op_type in QUANTIZABLE:
            unit.members.append(number)
    alone.first = min(alone.members, default=0)
    return [alone]


def _finished(graph: Graph, unit: _Growing) -> Unit:
    nodes = tuple(graph.nodes[n].name for n in sorted(set(unit.members)))
    return Unit(name=graph.nodes[unit.first].name, kind=unit.kind, nodes=nodes, macs=unit.macs)
