"""Rules for what cuts, joins, picks and pads."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from .analysis import Analysis, Dims, Rule, Value, pointwise
from .graph import shape
from .labels import FROZEN, Dim, Labels


def _cat(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    tensors = [v for v in args["tensors"] if shape(v) != (0,)]
    axis = args["dim"] % len(shape(tensors[0]))
    every = [net.dims(v) for v in tensors]
    output = [net.same(*(dims[place] for dims in every)) for place in range(len(every[0])) if place != axis]
    output.insert(axis, joined([dims[axis] for dims in every], [shape(v)[axis] for v in tensors]))
    return output


def joined(dims: Dims, sizes: list[int]) -> Dim:
    """One behind the other."""
    if all(dim is None for dim in dims):
        return None
    return np.concatenate([np.full(n, FROZEN) if d is None else d for d, n in zip(dims, sizes, strict=True)])


def _stack(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    output = net.broadcast(args["tensors"])
    output.insert(args["dim"] % len(shape(node)), None)
    return output


def _split(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """split, split_with_sizes, chunk, tensor_split: the pieces' sizes are in the output."""
    axis = args.get("dim", 0) % len(shape(args["self"]))
    places, output, start = net.dims(args["self"]), [], 0
    for meta in node.meta["val"]:
        size, dim = int(meta.shape[axis]), places[axis]
        piece = None if dim is None else dim[start : start + size]
        if size == 1:
            net.labels.freeze(piece)
            piece = None
        net.cuts.append(piece)
        output.append([*places[:axis], piece, *places[axis + 1 :]])
        start += size
    return output


def _unbind(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    places = net.dims(args["self"])
    axis = args["dim"] % len(places)
    net.labels.freeze(places[axis])
    return [[*places[:axis], *places[axis + 1 :]] for _ in node.meta["val"]]


def _slice(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Value:
    places, sizes = net.dims(args["self"]), shape(args["self"])
    axis = args["dim"] % len(places)
    dim, cut = places[axis], span(args, sizes[axis])
    if dim is not None and cut is not None:
        if cut.step > 1:
            _tie_in_steps(net.labels, dim, cut.step)
        places[axis] = dim[cut]
        net.cuts.append(places[axis])
    elif dim is not None:
        net.labels.freeze(dim)
        places[axis] = None
    return places


def span(args: dict[str, Any], size: int) -> slice | None:
    """What aten.slice or aten.narrow takes out, or None if the graph computes it."""
    if "length" in args:
        start, end, step = args["start"], None, 1
        if not isinstance(start, fx.Node) and not isinstance(args["length"], fx.Node):
            end = start % size + args["length"]
    else:
        start, end, step = args["start"], args["end"], args["step"]
    if any(isinstance(v, fx.Node) for v in (start, end, step)):
        return None
    return slice(*slice(start, end, step).indices(size))


def _tie_in_steps(labels: Labels, dim: np.ndarray, step: int) -> None:
    """Every second position is still every second one only if whole pairs go."""
    if len(dim) % step:
        labels.freeze(dim)
    for block in dim.reshape(-1, step).tolist() if len(dim) % step == 0 else []:
        for position in block[1:]:
            labels.unify(block[0], position)


def _select(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places = net.dims(args["self"])
    axis = args["dim"] % len(places)
    net.labels.freeze(places[axis])
    return [*places[:axis], *places[axis + 1 :]]


def _index(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """x[i, :, j]: what is indexed stays whole, the rest passes; index tensors stand together or at the front."""
    places, indices = net.dims(args["self"]), list(args["indices"])
    indices += [None] * (len(places) - len(indices))
    used = [axis for axis, index in enumerate(indices) if index is not None]
    for axis in used:
        net.labels.freeze(places[axis])
    tensors = [indices[axis] for axis in used]
    if any("bool" in str(t.meta["val"].dtype) for t in tensors):
        return net.freeze_all(node)
    for tensor in tensors:
        for dim in net.dims(tensor):
            net.labels.freeze(dim)
    rank = max(len(shape(t)) for t in tensors)
    rest = [places[axis] for axis in range(len(places)) if axis not in used]
    front = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    return [*rest[:front], *[None] * rank, *rest[front:]]


def _index_select(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places = net.dims(args["self"])
    net.labels.freeze(places[args["dim"]])
    places[args["dim"]] = None
    return places


def _roll(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    """Roll and flip: positions change places."""
    places = net.dims(args["self"])
    dims = args["dims"]
    for axis in dims if isinstance(dims, (list, tuple)) else [dims]:
        net.labels.freeze(places[axis])
        places[axis] = None
    return places


def _pad(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    """Constant padding leaves the old positions between new ones; any other kind would copy channels."""
    places, amounts = net.dims(args["self"]), args.get("pad") or args["padding"]
    plain = "constant" in str(args.get("mode", "constant")) and "pad1d" not in str(node.target)
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        dim = places[-1 - place]
        if dim is None or (before == 0 and after == 0):
            continue
        if not plain or before < 0 or after < 0:
            net.labels.freeze(dim)
            places[-1 - place] = None
        else:
            places[-1 - place] = joined([None, dim, None], [before, len(dim), after])
    return places


def _glu(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places = net.dims(args["self"])
    axis = args["dim"] % len(places)
    if (dim := places[axis]) is not None:
        places[axis] = net.same(dim[: len(dim) // 2], dim[len(dim) // 2 :])
    return places


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    **dict.fromkeys(("slice", "narrow"), _slice),
    "select": _select,
    "index": _index,
    "index_select": _index_select,
    **dict.fromkeys(("roll", "flip"), _roll),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "glu": _glu,
    **dict.fromkeys(("copy", "masked_fill", "where"), pointwise),
}
