"""Rules for what multiplies with weights or with another tensor, and for normalization."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from .analysis import Analysis, Dims, Rule, Value
from .graph import is_tensor, shape
from .labels import Dim


def _convolution(net: Analysis, node: fx.Node, args: dict[str, Any]) -> Dims:
    """Weight [out, in / groups, …], or transposed [in, out / groups, …]."""
    weight, places, groups = net.dims(args["weight"]), net.dims(args["input"]), int(args["groups"])
    transposed = "transpose" in str(node.target) or bool(args.get("transposed"))
    rank = len(weight) - 2
    for dim in [*weight[2:], *places[-rank:]]:
        net.labels.freeze(dim)
    channels, before, after = places[-rank - 1], shape(args["input"])[-rank - 1], shape(node)[-rank - 1]
    outer, inner = net.labels.split(channels, [groups, before // groups])
    if transposed:
        net.same(channels, weight[0])
        outer = net.labels.split(weight[0], [groups, before // groups])[0]
        output = net.labels.merge([outer, weight[1]], [groups, after // groups])
    else:
        net.same(inner, weight[1])
        net.same(outer, net.labels.split(weight[0], [groups, after // groups])[0])
        output = weight[0]
    if is_tensor(args["bias"]):
        output = net.same(output, net.dims(args["bias"])[0])
    return [*places[: -rank - 1], output, *[None] * rank]


def _linear(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places, weight = net.dims(args["input"]), net.dims(args["weight"])
    net.same(places[-1], weight[-1])
    if len(weight) == 1:
        return places[:-1]
    output = net.same(weight[0], net.dims(args["bias"])[0]) if is_tensor(args["bias"]) else weight[0]
    return [*places[:-1], output]


def _matmul(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    left, right = (args[k] for k in ("self", "mat2" if "mat2" in args else "other"))
    return _product(net, left, right)


def _product(net: Analysis, left: fx.Node, right: fx.Node) -> Dims:
    one, other = net.dims(left), net.dims(right)
    if len(other) == 1:
        net.same(one[-1], other[0])
        return one[:-1]
    net.same(one[-1], other[-2])
    if len(one) == 1:
        return [*other[:-2], other[-1]]
    return [*_batches(net, left, right), one[-2], other[-1]]


def _batches(net: Analysis, left: fx.Node, right: fx.Node) -> Dims:
    """The broadcast of all dimensions before the last two."""
    tensors = [(net.dims(v)[:-2], shape(v)[:-2]) for v in (left, right)]
    rank = max(len(sizes) for _, sizes in tensors)
    return [net.meeting(tensors, -place) for place in range(rank, 0, -1)]


def _addmm(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    names = ("mat1", "mat2") if "mat1" in args else ("batch1", "batch2")
    output = _product(net, *(args[name] for name in names))
    bias = net.dims(args["self"])
    for mine, theirs, size in zip(bias[::-1], output[::-1], shape(args["self"])[::-1], strict=False):
        if size > 1:
            net.same(mine, theirs)
    return output


def _einsum(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    inputs, _, output = args["equation"].replace(" ", "").partition("->")
    if "." in inputs or not output:
        return net.freeze_all(_node)  # type: ignore[return-value]
    found: dict[str, Dim] = {}
    for letters, value in zip(inputs.split(","), args["tensors"], strict=True):
        for letter, dim, size in zip(letters, net.dims(value), shape(value), strict=True):
            if size > 1:
                found[letter] = net.same(found[letter], dim) if letter in found else dim
    return [found.get(letter) for letter in output]


def _attention(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    """softmax(q kᵀ) v: [..., L, E], [..., S, E], [..., S, V] → [..., L, V]."""
    query, key, value = (args[k] for k in ("query", "key", "value"))
    q, k, v = net.dims(query), net.dims(key), net.dims(value)
    net.same(q[-1], k[-1])
    source = net.same(k[-2], v[-2])
    net.labels.freeze(source)
    if args.get("enable_gqa"):
        for dim in [*q[:-2], *k[:-2], *v[:-2]]:
            net.labels.freeze(dim)
    tensors = [(d[:-2], shape(n)[:-2]) for d, n in ((q, query), (k, key), (v, value))]
    mask = args["attn_mask"]
    if is_tensor(mask):
        tensors.append((net.dims(mask)[:-2], shape(mask)[:-2]))
        net.labels.freeze(net.dims(mask)[-1])
        if shape(mask)[-2] > 1:
            net.same(q[-2], net.dims(mask)[-2])
    return [*[net.meeting(tensors, -place) for place in range(len(q) - 2, 0, -1)], q[-2], v[-1]]


def _channelwise(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    """Batch and instance normalization, PReLU: the second dimension has parameters of its own."""
    places = net.dims(args["input"] if "input" in args else args["self"])
    names = ("weight", "bias", "running_mean", "running_var")
    given = [net.dims(args[n])[0] for n in names if is_tensor(args.get(n)) and math.prod(shape(args[n])) > 1]
    output = net.same(places[1], *given)
    return [places[0], output, *places[2:]]


def _layer_norm(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places, rank = net.dims(args["input"]), len(args["normalized_shape"])
    for name in ("weight", "bias"):
        if is_tensor(args.get(name)):
            tail = [net.same(mine, theirs) for mine, theirs in zip(places[-rank:], net.dims(args[name]), strict=True)]
            places = [*places[:-rank], *tail]
    return places


def _group_norm(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Dims:
    places, channels = net.dims(args["input"]), shape(args["input"])[1]
    given = [net.dims(args[n])[0] for n in ("weight", "bias") if is_tensor(args[n])]
    output = net.same(places[1], *given)
    net.labels.split(output, [args["num_groups"], channels // args["num_groups"]])
    return [places[0], output, *places[2:]]


def _embedding(net: Analysis, _node: fx.Node, args: dict[str, Any]) -> Value:
    table = net.dims(args["weight"])
    net.labels.freeze(table[0])
    return [*net.dims(args["indices"]), table[1]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        _convolution,
    ),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), _channelwise),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "embedding": _embedding,
}
