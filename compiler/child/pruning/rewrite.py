"""Takes units out of a graph: slices the parameters, and corrects every number in the graph that spoke of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import fx

from .analysis import Analysis, Dims
from .graph import arguments, attribute, operator, set_argument, shape
from .labels import Dim
from .on_pieces import span

# By parameter and axis, the indices that stay; an axis that stays whole is absent.
Kept = dict[str, dict[int, list[int]]]


class Removal:
    """What is left of a net when ``gone`` units are not there."""

    def __init__(self, net: Analysis, gone: Collection[int]) -> None:
        self.net, self._gone = net, frozenset(gone)
        self._masks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def mask(self, dim: np.ndarray) -> np.ndarray:
        """Which positions stay."""
        known = self._masks.get(id(dim))
        if known is None or known[0] is not dim:
            units = self.net.labels.units
            stays = np.array([self._gone.isdisjoint(units(position)) for position in dim.tolist()])
            known = self._masks[id(dim)] = (dim, stays)  # the array itself too: an id is reused once it is gone
        return known[1]

    def size(self, dim: Dim, size: int) -> int:
        """What becomes of a dimension of ``size``."""
        return size if dim is None else int(self.mask(dim).sum())

    def sizes(self, dims: Dims, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.size(dim, size) for dim, size in zip(dims, sizes, strict=True))

    def shape(self, node: object) -> tuple[int, ...]:
        """The shape that a tensor node will have."""
        return self.sizes(self.net.dims(node), shape(node))

    def kept(self) -> Kept:
        found: Kept = {}
        for name, dims in self.net.held.items():
            axes = {a: np.flatnonzero(self.mask(d)).tolist() for a, d in enumerate(dims) if d is not None}
            axes = {a: stays for a, stays in axes.items() if len(stays) < len(dims[a])}  # type: ignore[arg-type]
            if axes:
                found[name] = axes
        return found

    def carry_out(self) -> None:
        """Changes the net's module in place; afterwards it shares no tensor with the net that it was taken from."""
        for node in list(self.net.module.graph.nodes):
            correct = _CORRECTIONS.get(operator(node)) if node.op == "call_function" else None
            if correct is not None:
                correct(self, node, arguments(node))
        kept = self.kept()
        for name in self.net.held:
            _cut(self.net.module, name, kept.get(name, {}))
        self.net.module.recompile()


def _cut(module: torch.nn.Module, name: str, axes: dict[int, list[int]]) -> None:
    value = attribute(module, name)
    cut = value.detach().clone()
    for axis, stays in axes.items():
        cut = cut.index_select(axis, torch.tensor(stays))
    put(module, name, cut)


def put(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Sets a parameter or buffer, without gradient: with one, torch exports attention another way and may fail."""
    path, _, last = name.rpartition(".")
    owner, value = module.get_submodule(path), value.contiguous()
    learned = isinstance(getattr(owner, last), torch.nn.Parameter)
    setattr(owner, last, torch.nn.Parameter(value, requires_grad=False) if learned else value)


# --- what an operator's own numbers become -------------------------------------------------------------------------


def _size(net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    name = next(key for key in ("sizes", "size", "shape") if key in args)
    new = net.shape(node)
    if name == "sizes":  # unflatten: only the new dimensions' sizes
        axis = args["dim"] % len(shape(args["self"]))
        new = new[axis : axis + len(args["sizes"])]
    wanted = [old if isinstance(old, fx.Node) or old == -1 else size for old, size in zip(args[name], new, strict=True)]
    set_argument(node, name, wanted)


def _pieces(net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    axis = args.get("dim", 0)
    dim = net.net.dims(args["self"])[axis]
    if dim is None:
        return
    ends = np.cumsum([int(meta.shape[axis]) for meta in node.meta["val"]])
    counts = [int(part.sum()) for part in np.split(net.mask(dim), ends[:-1])]
    node.target = torch.ops.aten.split_with_sizes.default
    node.args, node.kwargs = (args["self"], counts, axis), {}


def _span(net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    axis = args["dim"]
    dim, size = net.net.dims(args["self"])[axis], shape(args["self"])[axis]
    if dim is None:
        return
    cut, stays = span(args, size), net.mask(dim)
    assert cut is not None  # noqa: S101 - the rule froze what the graph computes
    over = cut.start % cut.step
    start = int(stays[: cut.start - over].sum()) + over
    if "length" in args:
        set_argument(node, "start", start)
        set_argument(node, "length", int(stays[cut].sum()))
    else:
        set_argument(node, "start", start)
        set_argument(node, "end", int(stays[: cut.stop].sum()))


def _groups(net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    name = "num_groups" if "num_groups" in args else "groups"
    source = args["input"] if "input" in args else args["self"]
    groups, axis = args[name], 1 if name == "num_groups" or "weight" not in args else -len(shape(args["weight"])) + 1
    if groups > 1:
        size = shape(source)[axis]
        outer = net.net.labels.split(net.net.dims(source)[axis], [groups, size // groups])[0]
        set_argument(node, name, net.size(outer, groups))


def _normalized(net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    set_argument(node, "normalized_shape", list(net.shape(node)[-len(args["normalized_shape"]) :]))


def _attention(_net: Removal, node: fx.Node, args: dict[str, Any]) -> None:
    """Attention was trained with the scale of its full width."""
    if args["scale"] is None:
        set_argument(node, "scale", 1 / math.sqrt(shape(args["query"])[-1]))


_CORRECTIONS: dict[str, Callable[[Removal, fx.Node, dict[str, Any]], None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten", "expand", "broadcast_to"), _size),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _pieces),
    **dict.fromkeys(("slice", "narrow"), _span),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "group_norm", "channel_shuffle"), _groups),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _groups),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    "scaled_dot_product_attention": _attention,
}
