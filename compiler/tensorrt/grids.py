"""Values that must be on one grid, because one is made of the other without computing."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from compiler.graph.view import Graph

# One grid on both sides: they move values, or take the greatest.
_MOVES = {"MaxPool", "Split", "Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}


def shared_grids(graph: Graph, values: Iterable[str]) -> dict[str, list[str]]:
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
