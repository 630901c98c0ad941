"""A graph to ask questions of: who makes a value, who reads it, what it is. And what is left of one when parts go.

Decisions stand on this structure alone: operators, constants, inferred shapes. Never on names, which exporters choose.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.generic]
Number = TypeVar("Number", int, float)
ONNX = ("", "ai.onnx")  # what the domain of ONNX's own operators is called

# What computes with weights, and is worth int8.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What moves or picks values without computing: the output lies on the input's grid.
MOVES = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "MaxPool", "Resize", "Pad"}
)
# What computes value by value, or over a window, and has int8 kernels.
COMPUTES = frozenset(
    {"Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "AveragePool", "GlobalAveragePool"}
)
# What divides by the spread of its input: a grid there costs more than anywhere else.
_NORMS = frozenset(
    {
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LpNormalization",
        "Softmax",
        "LogSoftmax",
    }
)


class Graph:
    """The main graph of ``model``, which must not change under it: its nodes in their order, and what each value is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: Sequence[onnx.NodeProto] = list(model.graph.node)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [entry.name for entry in model.graph.input if entry.name not in self.tensors]
        self.outputs = {entry.name for entry in model.graph.output}
        self.producer = {value: node for node in self.nodes for value in node.output if value}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(reads(node)):
                self.consumers[value].append(node)

    def constant(self, value: str) -> Array | None:
        """What an initializer holds, or a ``Constant`` node that holds a tensor."""
        if value in self.tensors:
            return numpy_helper.to_array(self.tensors[value])
        node = self.producer.get(value)
        if node is None or node.op_type != "Constant":
            return None
        return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)

    @cached_property
    def types(self) -> dict[str, int]:
        """The element type of each value, as far as ONNX can tell. Constants count."""
        found = {name: value.elem_type for name, value in self._values.items()}
        return found | {name: tensor.data_type for name, tensor in self.tensors.items()}

    def is_float(self, value: str) -> bool:
        """Whether ``value`` is a float32 tensor."""
        return self.types.get(value) == TensorProto.FLOAT

    def shape(self, value: str) -> list[int | None] | None:
        """The dimensions of a value, None for each that is not fixed; None if nothing is known."""
        if value in self.tensors:
            return list(self.tensors[value].dims)
        found = self._values.get(value)
        if found is None or not found.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim]

    def sizes(self, value: str) -> list[int]:
        """Its dimensions; one that is open counts 1."""
        return [1 if dim is None else dim for dim in self.shape(value) or []]

    @cached_property
    def depth(self) -> dict[str, int]:
        """How many nodes in a row are behind each value, at most; 0 for an input or an initializer."""
        found = dict.fromkeys([*self.tensors, *self.inputs], 0)
        for node in self.nodes:
            behind = 1 + max((found.get(value, 0) for value in node.input), default=0)
            found.update(dict.fromkeys(node.output, behind))
        return found

    def data(self, node: onnx.NodeProto) -> list[str]:
        """The float inputs of ``node`` that are computed or come from outside."""
        return [v for v in dict.fromkeys(node.input) if v and not self._is_fixed(v) and self.is_float(v)]

    def computes_floats(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` makes floats out of floats that are not constant."""
        return bool(self.data(node)) and any(self.is_float(v) for v in node.output)

    def weight(self, node: onnx.NodeProto) -> str | None:
        """The constant table that a weighted node multiplies by; None if both of its operands are computed."""
        return next((v for v in node.input[1::-1] if v in self.tensors and self.is_float(v)), None)

    def number(self, node: onnx.NodeProto, index: int, default: float) -> float:
        """The constant number that is input ``index`` of ``node``; ``default`` if there is none."""
        name = node.input[index] if len(node.input) > index else ""
        if not name:
            return default
        return float(numpy_helper.to_array(self.tensors[name]).item()) if name in self.tensors else math.inf

    def normalizes(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` divides by the spread of its input, as LayerNorm and Softmax do.

        A LayerNorm that was exported in pieces is known by its subtraction of the mean: x - ReduceMean(x).
        """
        if node.op_type == "Sub":
            mean = self.producer.get(node.input[1])
            return mean is not None and mean.op_type == "ReduceMean" and mean.input[0] == node.input[0]
        return node.op_type in _NORMS

    def macs(self, node: onnx.NodeProto) -> int:
        """Multiplications with accumulation of a weighted node, for a batch as it was exported."""
        if node.op_type == "Conv":
            return math.prod(self.sizes(node.output[0])) * math.prod(self.sizes(node.input[1])[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(self.sizes(node.input[0])) * math.prod(self.sizes(node.input[1])[1:])
        inner = self.sizes(node.input[0])
        depth = inner[0] if attribute(node, "transA", 0) else inner[-1] if inner else 1
        return math.prod(self.sizes(node.output[0])) * depth

    def _is_fixed(self, value: str) -> bool:
        node = self.producer.get(value)
        return value in self.tensors if node is None else node.op_type == "Constant"

    @cached_property
    def _values(self) -> dict[str, onnx.TypeProto.Tensor]:
        graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        return {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info, *graph.output]}


def name_of(node: onnx.NodeProto) -> str:
    """A node's name; a node without one is called after its first output."""
    return node.name or node.output[0]


def attribute(node: onnx.NodeProto, name: str, default: Number) -> Number:
    """A number among the attributes of ``node``."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside ``node``, as If, Loop and Scan have them; not those inside these."""
    for item in node.attribute:
        yield from [item.g] if item.HasField("g") else item.graphs


def captured(node: onnx.NodeProto) -> list[str]:
    """What the subgraphs of ``node`` take from around them, at any depth."""
    found = []
    for part in subgraphs(node):
        own = {v.name for v in [*part.input, *part.initializer]} | {v for n in part.node for v in n.output}
        inner = [value for n in part.node for value in reads(n)] + [value.name for value in part.output]
        found += [value for value in inner if value not in own]
    return found


def reads(node: onnx.NodeProto) -> list[str]:
    """What ``node`` needs: its inputs, and what its subgraphs take from around them."""
    return [*filter(None, node.input), *captured(node)]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 if it does not say."""
    return next((opset.version for opset in model.opset_import if opset.domain in ONNX), 0)


def needed(nodes: Sequence[onnx.NodeProto], values: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes, in their order, without which some of ``values`` could not be computed."""
    wanted, kept = set(values), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(reads(node))
            kept.append(node)
    return kept[::-1]


def without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops initializers, constants and operator sets that nobody uses any more."""
    graph = model.graph
    used = {value for node in graph.node for value in reads(node)} | {output.name for output in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used]
    opsets = [opset for opset in model.opset_import if opset.domain in {*ONNX, *_domains(nodes)}]
    del graph.initializer[:], graph.node[:], model.opset_import[:]
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)
    model.opset_import.extend(opsets)
    return model


def _domains(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.domain
        for part in subgraphs(node):
            yield from _domains(part.node)
