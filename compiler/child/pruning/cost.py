"""How many parameters a net has and how many multiplications it takes, before and after."""

from __future__ import annotations

import math

import msgspec
from torch import fx

from .graph import arguments, operator
from .rewrite import Removal


class Cost(msgspec.Struct, frozen=True):
    """Parameters that the graph reads, and multiply-accumulates of one run of the example."""

    parameters: int
    macs: int


def cost(net: Removal, learned: frozenset[str]) -> Cost:
    """The cost of what a removal leaves.

    Args:
        learned: names of the parameters, among all tensors that the graph reads.
    """
    read = {str(node.target): node for node in net.net.module.graph.nodes if node.op == "get_attr"}
    parameters = sum(math.prod(net.shape(read[name])) for name in learned)
    calls = (node for node in net.net.module.graph.nodes if node.op == "call_function")
    return Cost(parameters, sum(_macs(net, node) for node in calls))


def _macs(net: Removal, node: fx.Node) -> int:
    name = operator(node)
    if name not in _PER_OUTPUT and name != "scaled_dot_product_attention":
        return 0
    args = arguments(node)
    if name == "scaled_dot_product_attention":
        query, key, value = (net.shape(args[k]) for k in ("query", "key", "value"))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name.startswith("conv"):
        weight = net.shape(args["weight"])
        source = args["input"] if "transpose" in name else node
        return math.prod(net.shape(source)) * math.prod(weight[1:])
    if name == "einsum":
        letters = args["equation"].replace(" ", "").split("->")[0].split(",")
        sizes = {
            c: n
            for word, v in zip(letters, args["tensors"], strict=True)
            for c, n in zip(word, net.shape(v), strict=False)
        }
        return math.prod(sizes.values())
    return math.prod(net.shape(node)) * net.shape(args[_PER_OUTPUT[name]])[-1]


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "einsum")
_PER_OUTPUT = {
    **dict.fromkeys(_CONVOLUTIONS, ""),
    "linear": "input",
    "matmul": "self",
    "mm": "self",
    "bmm": "self",
    "addmm": "mat1",
    "baddbmm": "batch1",
}
