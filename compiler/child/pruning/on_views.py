"""Rules for what reshapes, turns, repeats, and moves channels into space or back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx

from .analysis import Analysis, Dims, Rule, Value
from .graph import is_tensor, shape
from .labels import Labels


def reshaped(labels: Labels, dims: Dims, before: tuple[int, ...], after: tuple[int, ...]) -> Dims:
    """The dimensions after a reshape: the shortest runs of sizes with equal products are merged and split."""
    output: Dims = []
    for old, new in _runs(before, after):
        if len(old) == len(new) == 1:
            output.append(dims[old[0]])
            continue
        flat = labels.merge([dims[i] for i in old], [before[i] for i in old])
        output += labels.split(flat, [after[i] for i in new])
    return output


def _runs(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    left = right = 0
    while left < len(before) or right < len(after):
        old, new = [left] if left < len(before) else [], [right] if right < len(after) else []
        mine = math.prod(before[i] for i in old)
        theirs = math.prod(after[i] for i in new)
        while mine != theirs:
            if (mine < theirs and old[-1] + 1 < len(before)) or not new:
                old.append(old[-1] + 1)
                mine *= before[old[-1]]
            else:
                new.append((new[-1] if new else right - 1) + 1)
                theirs *= after[new[-1]]
        yield old, new
        left, right = (old[-1] + 1 if old else left), (new[-1] + 1 if new else right)


def _view(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    output = reshaped(net.labels, net.dims(args["self"]), shape(args["self"]), shape(node))
    for dim, size in zip(output, args.get("size") or args.get("shape") or [], strict=False):
        if isinstance(size, fx.Node):  # a length that the graph computes: nobody could correct it
            net.labels.freeze(dim)
    return output


def _permute(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places = net.dims(args["self"])
    return [places[axis] for axis in args["dims"]]


def _transpose(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    order = list(range(len(shape(node))))
    axes = [args[key] for key in ("dim0", "dim1", "axis0", "axis1") if key in args]
    if axes:
        one, other = axes
        order[one], order[other] = order[other], order[one]
    else:
        order.reverse()  # t(), .T
    places = net.dims(args["self"])
    return [places[axis] for axis in order]


def _movedim(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    rank = len(shape(node))
    sources, targets = ([a % rank for a in _listed(args[k])] for k in ("source", "destination"))
    rest = iter(axis for axis in range(rank) if axis not in sources)
    places = net.dims(args["self"])
    return [places[sources[targets.index(axis)] if axis in targets else next(rest)] for axis in range(rank)]


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _expand(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, before, after = net.dims(args["self"]), shape(args["self"]), shape(node)
    added = len(after) - len(before)
    return [None] * added + [d if n == m else None for d, n, m in zip(places, before, after[added:], strict=True)]


def _repeat(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, times = net.dims(args["self"]), [*(args.get("repeats") or args["dims"])]
    places = [*[None] * (len(times) - len(places)), *places]
    times = [1] * (len(places) - len(times)) + times
    sizes = shape(node)
    return [None if dim is None else np.tile(dim, size // len(dim)) for dim, size in zip(places, sizes, strict=True)]


def _repeat_each(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    places, dim = net.dims(args["self"]), args["dim"]
    if dim is None or is_tensor(args["repeats"]):
        return net.freeze_all(node)
    if (found := places[dim]) is not None:
        places[dim] = np.repeat(found, args["repeats"])
    return places


def _pixel_shuffle(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, factor = net.dims(args["self"]), args["upscale_factor"] ** 2
    channel, inner = net.labels.split(places[-3], [shape(node)[-3], factor])
    net.labels.freeze(inner)
    return [*places[:-3], channel, None, None]


def _pixel_unshuffle(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, factor = net.dims(args["self"]), args["downscale_factor"] ** 2
    return [*places[:-3], net.labels.merge([places[-3], None], [shape(node)[-3] // factor, factor]), None, None]


def _channel_shuffle(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, groups, channels = net.dims(args["self"]), args["groups"], shape(node)[1]
    outer, inner = net.labels.split(places[1], [groups, channels // groups])
    return [places[0], net.labels.merge([inner, outer], [channels // groups, groups]), *places[2:]]


def _im2col(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places, window = net.dims(args["self"]), math.prod(args["kernel_size"])
    channels = places[-3]
    return [*places[:-3], None if channels is None else np.repeat(channels, window), None]


def _col2im(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    places, window = net.dims(args["self"]), math.prod(args["kernel_size"])
    channel, inner = net.labels.split(places[-2], [shape(node)[-3], window])
    net.labels.freeze(inner)
    return [*places[:-2], channel, None, None]


def _unfold(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places = net.dims(args["self"])
    net.labels.freeze(places[args["dimension"]])
    places[args["dimension"]] = None
    return [*places, None]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        _view,
    ),
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t", "numpy_T"), _transpose),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_each,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _im2col,
    "col2im": _col2im,
    "unfold": _unfold,
}
