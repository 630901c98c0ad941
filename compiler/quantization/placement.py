"""Which nodes ONNX Runtime's CPU provider shall run in int8, and which values therefore lie on a grid.

A pure decision, from structure alone. A Q/DQ pair that no int8 kernel takes up costs time and accuracy and gains
nothing, so the rules are those of ONNX Runtime's own selectors (qdq_selector_action_transformer.cc, read 2026-11):

- A convolution runs in int8 only if its output is put on a grid; a matrix product gives floats as well, so it does.
  Its neighbours then compute in float: that keeps every grid off the residual stream of a transformer.
- ConvTranspose and Pad have no int8 kernel. A product of two computed matrices has one, but attention's weights are
  what int8 spoils first, and they are little work.
- What neither has weights nor leads to any stays float, and so does what is on the way into a LayerNorm or a softmax.
- Value by value operators follow their inputs: in int8 where all of them are on a grid already.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from compiler.graph.view import COMPUTES, MOVES, WEIGHTED, Graph, attribute

_NO_KERNEL = frozenset({"Pad"})
# Through these a value reaches a norm with its error unchanged.
_STREAM = (MOVES | {"Add", "Concat"}) - {"MaxPool"}


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        nodes: names of the nodes that run in int8.
        grids: the computed values and inputs that are put on a grid, in the graph's order; each with the value whose
            grid it shares, or itself.
        bound: those of ``grids`` that every user reads from the grid, since their maker's kernel writes them there;
            of the others, made in float, only int8 nodes do.
        folded: names of the nodes that the grid behind them replaces: a ReLU is where an unsigned grid ends.
    """

    nodes: frozenset[str]
    grids: dict[str, str]
    bound: frozenset[str]
    folded: frozenset[str]


def place(graph: Graph, keep_float: Collection[str] = ()) -> Placement:
    """Decides. Nodes named in ``keep_float`` and all their inputs that no int8 node shares stay as they are."""
    usable = [n for n in graph.nodes if n.name not in keep_float and graph.computes_floats(n)]
    strained = _strained(graph)
    weighted = [n for n in usable if multiplies(graph, n) and (gives_floats(n) or n.output[0] not in strained)]
    free, leading = {n.name for n in usable}, _leading(graph, usable, weighted)
    chosen, on_grid = {n.name for n in weighted}, {graph.data(n)[0] for n in weighted}
    _move_up(graph, usable, on_grid)
    bound: set[str] = set()
    for node in graph.nodes:
        follows = node.name in leading and all(v in on_grid for v in graph.data(node))
        if (follows or (node.name in free and _folds(graph, node, chosen))) and node.output[0] not in strained:
            chosen.add(node.name)
        if node.name in chosen and not gives_floats(node):
            bound.update(node.output)
            on_grid.update(node.output)
    folded = {n.name: n.input[0] for n in graph.nodes if n.name in chosen and _folds(graph, n, chosen)}
    grids = _grids(graph, chosen, set(folded.values()))
    return Placement(frozenset(chosen), grids, frozenset(bound & grids.keys()), frozenset(folded))


def _move_up(graph: Graph, usable: list[onnx.NodeProto], on_grid: set[str]) -> None:
    """Puts what was only moved on its way to an int8 node on a grid before the move: once, for all who read it."""
    for node in reversed(usable):
        if node.op_type in MOVES - _NO_KERNEL and set(node.output) <= on_grid:
            on_grid.update(graph.data(node))


def gives_floats(node: onnx.NodeProto) -> bool:
    """Whether the int8 kernel of ``node`` returns floats."""
    return node.op_type in ("MatMul", "Gemm")


def multiplies(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` multiplies by a table of weights, and adds a bias, that an int8 kernel takes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or graph.weight(node) != node.input[1]:
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (bias not in graph.tensors or len(graph.sizes(bias)) != 1):
        return False
    if node.op_type == "Conv":
        return True
    plain = attribute(node, "alpha", 1.0) == 1.0 == attribute(node, "beta", 1.0) and not attribute(node, "transA", 0)
    return plain and len(graph.sizes(node.input[1])) == 2  # a stack of matrices has no axis that all kernels take


def _strained(graph: Graph) -> set[str]:
    """The values that a norm or a softmax reads, and those that reach it through additions alone."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if graph.normalizes(node):
            found.add(node.input[0])
        elif node.op_type in _STREAM and found.intersection(node.output):
            found.update(graph.data(node))
    return found


def _leading(graph: Graph, usable: list[onnx.NodeProto], weighted: list[onnx.NodeProto]) -> set[str]:
    """The nodes without weights behind which there is an int8 node with weights."""
    wanted = {graph.data(node)[0] for node in weighted}
    found: set[str] = set()
    for node in reversed(usable):
        takes_part = node.op_type in (MOVES | COMPUTES) - _NO_KERNEL - WEIGHTED
        if takes_part and wanted.intersection(node.output):
            found.add(node.name)
            wanted.update(graph.data(node))
    return found


def _folds(graph: Graph, node: onnx.NodeProto, chosen: Collection[str]) -> bool:
    """Whether the int8 kernel before ``node`` ends its grid where ``node`` clips, so that nothing is left to do."""
    if node.op_type not in ("Relu", "Clip") or (node.op_type == "Clip" and graph.number(node, 1, -1.0) > 0):
        return False
    value = node.input[0]
    maker = graph.producer.get(value)
    alone = len(graph.consumers[value]) == 1 and value not in graph.outputs
    return alone and maker is not None and maker.name in chosen and maker.op_type in ("Conv", "Add", "Mul", "Concat")


def _grids(graph: Graph, chosen: Collection[str], folded: Collection[str]) -> dict[str, str]:
    grids: dict[str, str] = {}
    for node in graph.nodes:
        if node.name not in chosen:
            continue
        for value in graph.data(node):
            if value not in folded:
                grids.setdefault(value, value)
        if not gives_floats(node):
            like = grids[graph.data(node)[0]] if node.op_type in MOVES else None
            grids.update((value, like or value) for value in node.output if value and value not in folded)
    return grids
