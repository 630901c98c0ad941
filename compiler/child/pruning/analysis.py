"""Follows positions through a graph, by a table of rules.

A rule reads the inputs' dimensions, ties what must agree, freezes what cannot shrink, and returns the output's
dimensions. An operator without a rule freezes everything that goes into it, so that a gap in the table leaves channels
in and never makes a wrong net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .graph import arguments, attribute, is_tensor, operator, shape
from .labels import Dim, Labels

Dims = list[Dim]
Value = Dims | list[Dims]  # one tensor's, or several tensors'
Rule = Callable[["Analysis", fx.Node, dict[str, Any]], Value]


class Analysis:
    """What every tensor of a graph is made of.

    Args:
        rules: by operator.
        keep: names of modules and parameters whose outputs lose nothing. The graph's own outputs never do.

    Attributes:
        held: the dimensions of each parameter and buffer that the graph reads.
        cuts: what split and slice took out; no piece may become empty.
        unknown: operators that have no rule, or none for their form, and were frozen.
    """

    def __init__(self, module: fx.GraphModule, rules: Mapping[str, Rule], keep: Sequence[str] = ()) -> None:
        self.module, self.labels, self._rules = module, Labels(), rules
        self.held: dict[str, Dims] = {}
        self.cuts: list[Dim] = []
        self.unknown: set[str] = set()
        self._values: dict[fx.Node, Value] = {}
        for node in module.graph.nodes:
            self._visit(node)
        for name, dims in self.held.items():
            if any(name == kept or name.startswith(f"{kept}.") for kept in keep):
                self.labels.freeze(dims[0] if dims else None)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._values[node] = self._hold(str(node.target))
        elif node.op == "placeholder":
            self._values[node] = self.plain(node)
        elif node.op == "output":
            self.freeze_all(node)
        elif node.op == "call_function":
            self._values[node] = self._apply(node)

    def _hold(self, name: str) -> Dims:
        if name not in self.held:
            value = attribute(self.module, name)
            if not isinstance(value, torch.Tensor):
                return []
            self.held[name] = [self.labels.fresh(size) if size > 1 else None for size in value.shape]
        return list(self.held[name])

    def _apply(self, node: fx.Node) -> Value:
        name = operator(node)
        if name == "getitem":
            values = self._values.get(node.args[0], [])  # type: ignore[arg-type]
            return values[node.args[1]] if values else self.plain(node)  # type: ignore[return-value, index]
        rule = self._rules.get(name)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = pointwise
        try:
            if rule is not None:
                return self._checked(node, rule(self, node, arguments(node)))
        except (AssertionError, AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
            name = f"{name} ({node.name})"  # a form of the operator that the rule does not foresee
        if any(d is not None for n in node.all_input_nodes for d in self.flat(n)):
            self.unknown.add(name)
        return self.freeze_all(node)

    def _checked(self, node: fx.Node, value: Value) -> Value:
        """Holds a rule to the shapes; a dimension of one cannot become less."""
        if not is_tensor(node):
            return value
        sizes = shape(node)
        if len(value) != len(sizes) or any(d is not None and len(d) != n for d, n in zip(value, sizes, strict=True)):
            raise AssertionError(f"the rule for {operator(node)} does not fit its output {sizes} ({node.name})")
        for dim, size in zip(value, sizes, strict=True):
            if size == 1:
                self.labels.freeze(dim)  # type: ignore[arg-type]
        return [None if size == 1 else dim for dim, size in zip(value, sizes, strict=True)]  # type: ignore[return-value]

    # --- for the rules ---------------------------------------------------------------------------------------------

    def dims(self, value: object) -> Dims:
        """The dimensions of a tensor argument; of a number, none."""
        if not isinstance(value, fx.Node):
            return []
        found = self._values.get(value, [])
        return list(found)  # type: ignore[arg-type]

    def flat(self, node: fx.Node) -> Dims:
        """The dimensions of all tensors that a node returns."""
        found = self._values.get(node, [])
        return [d for value in found for d in (value if isinstance(value, list) else [value])]

    def plain(self, node: fx.Node) -> Value:
        """The output of which nothing ever goes."""
        meta = node.meta.get("val")
        if isinstance(meta, (list, tuple)):
            return [_whole(v.dim() if isinstance(v, torch.Tensor) else 0) for v in meta]
        return _whole(len(shape(node)))

    def freeze_all(self, node: fx.Node) -> Value:
        for value in node.all_input_nodes:
            for dim in self.flat(value):
                self.labels.freeze(dim)
        return self.plain(node)

    def same(self, *dims: Dim) -> Dim:
        """Ties dimensions of the same length; the one that stands for all."""
        first = dims[0]
        for other in dims[1:]:
            self.labels.together(first, other)
        return first if all(dim is not None for dim in dims) else None

    def broadcast(self, values: Sequence[object]) -> Dims:
        """Ties what meets when tensors are combined element by element."""
        tensors = [(self.dims(v), shape(v)) for v in values if is_tensor(v)]
        rank = max((len(sizes) for _, sizes in tensors), default=0)
        return [self.meeting(tensors, -place) for place in range(rank, 0, -1)]

    def meeting(self, tensors: Sequence[tuple[Dims, tuple[int, ...]]], place: int) -> Dim:
        """What the tensors have at a place, counted from the end; where one is missing or 1, it is repeated."""
        real = [dims[place] for dims, sizes in tensors if len(sizes) >= -place and sizes[place] > 1]
        return self.same(*real) if real else None


def _whole(rank: int) -> Dims:
    return [None] * rank


def pointwise(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    """Element by element over all tensor arguments."""
    return net.broadcast([v for a in args.values() for v in (a if isinstance(a, (list, tuple)) else [a])])
