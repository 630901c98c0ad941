"""A graph to ask questions of: who makes a value, who uses it, what it is. Read only.

Decisions stand on this structure alone: operators, constants, inferred shapes. Never on names, which exporters choose.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import onnx
from onnx import helper, numpy_helper

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
    """The nodes of ``model`` in their order, and what each value is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model)
        graph = inferred.graph
        self.nodes: Sequence[onnx.NodeProto] = [n for n in graph.node if n.op_type != "Constant"]
        self.tensors = {t.name: t for t in graph.initializer}
        self.constants = {*self.tensors, *(v for n in graph.node if n.op_type == "Constant" for v in n.output)}
        self.inputs = [v.name for v in graph.input if v.name not in self.tensors]
        self.outputs = [v.name for v in graph.output]
        self.maker = {value: node for node in self.nodes for value in node.output if value}
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(reads(node)):
                self.users[value].append(node)
        infos = [*graph.value_info, *graph.input, *graph.output]
        self._types = {v.name: v.type.tensor_type for v in infos}

    def is_float(self, value: str) -> bool:
        """Whether ``value`` is a float32 tensor. Constants count."""
        if value in self.tensors:
            return bool(self.tensors[value].data_type == onnx.TensorProto.FLOAT)
        found = self._types.get(value)
        return found is not None and found.elem_type == onnx.TensorProto.FLOAT

    def shape(self, value: str) -> list[int]:
        """Its dimensions; one that is open counts 1."""
        if value in self.tensors:
            return list(self.tensors[value].dims)
        found = self._types.get(value)
        return [] if found is None else [d.dim_value if d.HasField("dim_value") else 1 for d in found.shape.dim]

    def data(self, node: onnx.NodeProto) -> list[str]:
        """The float inputs of ``node`` that are computed or come from outside."""
        return [v for v in dict.fromkeys(node.input) if v and v not in self.constants and self.is_float(v)]

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
            mean = self.maker.get(node.input[1])
            return mean is not None and mean.op_type == "ReduceMean" and mean.input[0] == node.input[0]
        return node.op_type in _NORMS

    def macs(self, node: onnx.NodeProto) -> int:
        """Multiplications with accumulation of a weighted node, for a batch as it was exported."""
        if node.op_type == "Conv":
            return math.prod(self.shape(node.output[0])) * math.prod(self.shape(node.input[1])[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(self.shape(node.input[0])) * math.prod(self.shape(node.input[1])[1:])
        inner = self.shape(node.input[0])
        depth = inner[0] if attribute(node, "transA", 0) else inner[-1] if inner else 1
        return math.prod(self.shape(node.output[0])) * int(depth)


def reads(node: onnx.NodeProto) -> list[str]:
    """What ``node`` needs: its inputs, and what its subgraphs take from around them."""
    found = [value for value in node.input if value]
    for part in (part for a in node.attribute for part in ([a.g] if a.HasField("g") else a.graphs)):
        own = {v.name for v in [*part.input, *part.initializer]} | {v for n in part.node for v in n.output}
        inner = [value for n in part.node for value in reads(n)] + [value.name for value in part.output]
        found += [value for value in inner if value not in own]
    return found


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number among the attributes of ``node``."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
