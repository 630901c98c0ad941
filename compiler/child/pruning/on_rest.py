"""Rules for what works element by element, over space, over a whole dimension, or makes tensors from nothing."""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from .analysis import Analysis, Dims, Rule, Value, pointwise
from .graph import is_tensor, shape


def _first(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    """The output is made of what the first tensor is made of."""
    return net.dims(next(value for value in args.values() if is_tensor(value)))


def _spatial(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """Pooling, resizing and sampling: the last dimensions are space, the others pass."""
    source = next(value for value in args.values() if is_tensor(value))
    places = net.dims(source)
    count = int(re.search(r"(\d)d", str(node.target)).group(1))  # type: ignore[union-attr]
    for dim in places[-count:]:
        net.labels.freeze(dim)
    output = [*places[:-count], *[None] * count]
    return [output, output] if isinstance(node.meta["val"], (list, tuple)) else output


def _sample(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    for dim in net.dims(args["grid"]):
        net.labels.freeze(dim)
    return [*net.dims(args["input"])[:2], *[None] * (len(shape(args["input"])) - 2)]


def _reduce(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """Mean, sum, amax, var …: what is summed over may shrink, and what remains passes."""
    places = net.dims(args["self"])
    over = args.get("dim")
    axes = range(len(places)) if over is None or over == [] else [over] if isinstance(over, int) else over
    gone = {axis % len(places) for axis in axes}
    if args.get("keepdim"):
        output = [None if axis in gone else dim for axis, dim in enumerate(places)]
    else:
        output = [dim for axis, dim in enumerate(places) if axis not in gone]
    several = isinstance(node.meta["val"], (list, tuple))
    return [list(output) for _ in node.meta["val"]] if several else output


def _along(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """softmax, cumsum, sort …: along one dimension every element counts, so it stays whole."""
    places = net.dims(args.get("self", args.get("input")))
    axis = args["dim"]
    net.labels.freeze(places[axis])
    places[axis] = None
    several = isinstance(node.meta["val"], (list, tuple))
    return [list(places) for _ in node.meta["val"]] if several else places


def _chosen(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Value:
    """Argmax and max along a dimension: which one it was must keep its number."""
    if args.get("dim") is None:
        return net.freeze_all(node)
    net.labels.freeze(net.dims(args["self"])[args["dim"]])
    return _reduce(net, node, args)


def _nothing(net: Analysis, node: fx.Node, _args: dict[str, Any]) -> Value:
    return net.plain(node)


_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
_RESIZES = ("upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear", "upsample_bicubic")
_RESIZES_AA = ("_upsample_bilinear", "_upsample_bicubic")
_PADS = ("reflection_pad", "replication_pad")

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "float", "half", "double"),
            *("dropout", "feature_dropout", "alpha_dropout", "lift_fresh_copy", "hardswish", "hardsigmoid", "silu"),
            *("hardtanh", "relu6", "mish", "celu", "selu", "elu", "softplus", "leaky_relu", "rrelu", "logsigmoid"),
            *("zeros_like", "ones_like", "full_like", "empty_like", "fill", "zero", "nan_to_num", "positive"),
            *("native_dropout", "gelu", "relu", "lift_fresh", "lift", "requires_grad", "bernoulli", "softsign"),
        ),
        _first,
    ),
    **{f"{name}{n}d{end}": _spatial for name in _POOLS for n in (1, 2, 3) for end in ("", "_with_indices")},
    **{f"{name}{n}d": _spatial for name in (*_RESIZES, *_PADS) for n in (1, 2, 3)},
    **{f"{name}2d_aa": _spatial for name in _RESIZES_AA},
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _sample),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "any", "all"),
        _reduce,
    ),
    **dict.fromkeys(("norm", "linalg_vector_norm", "nansum", "nanmean"), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "cumsum", "cumprod", "sort", "topk", "argsort"), _along),
    **dict.fromkeys(("max", "min", "argmax", "argmin", "median"), _chosen),
    **dict.fromkeys(
        (
            *("arange", "zeros", "ones", "full", "empty", "linspace", "scalar_tensor", "eye", "tensor", "tril_indices"),
            *("new_zeros", "new_ones", "new_full", "new_empty", "sym_size", "sym_numel", "item", "randn", "rand"),
            *("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"),
        ),
        _nothing,
    ),
    **dict.fromkeys(("lerp", "addcmul", "addcdiv", "pow", "maximum", "minimum"), pointwise),
}
