"""Looking at an ONNX graph: who makes a value, who reads it, of which type it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.generic]
_ONNX = ("", "ai.onnx")


def name_of(node: onnx.NodeProto) -> str:
    """A node's name; a node without one is called after its first output."""
    return node.name or node.output[0]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 if it does not say."""
    return next((opset.version for opset in model.opset_import if opset.domain in _ONNX), 0)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((a.i for a in node.attribute if a.name == name), default)


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the subgraphs of ``node`` read from outside, at any depth (and some of their own)."""
    for item in node.attribute:
        for graph in [item.g, *item.graphs] if item.HasField("g") or item.graphs else []:
            for inner in graph.node:
                yield from inner.input
                yield from captured(inner)
            yield from (output.name for output in graph.output)


class Graph:
    """A view of a model's main graph. The model must not change under it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.producer = {output: node for node in self.nodes for output in node.output if output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.input):
                self.consumers.setdefault(value, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str) -> Array | None:
        """The value of an initializer, or of a ``Constant`` node that holds a tensor."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name])
        node = self.producer.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), None)

    @cached_property
    def types(self) -> dict[str, int]:
        """The element type of each value, as far as ONNX can tell."""
        found = {name: value.elem_type for name, value in self._values.items()}
        return found | {name: tensor.data_type for name, tensor in self._tensors.items()}

    def shape(self, name: str) -> list[int | None] | None:
        """The shape of a value, None for each dimension that is not fixed; None if nothing is known."""
        if name in self._tensors:
            return list(self._tensors[name].dims)
        value = self._values.get(name)
        if value is None or not value.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.shape.dim]

    @cached_property
    def depth(self) -> dict[str, int]:
        """How many nodes in a row are behind each value, at most; 0 for an input or an initializer."""
        found = dict.fromkeys([*self._tensors, *(entry.name for entry in self.model.graph.input)], 0)
        for node in self.nodes:
            behind = 1 + max((found.get(value, 0) for value in node.input), default=0)
            found.update(dict.fromkeys(node.output, behind))
        return found

    @cached_property
    def _values(self) -> dict[str, onnx.TypeProto.Tensor]:
        graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        return {v.name: v.type.tensor_type for v in [*graph.input, *graph.value_info, *graph.output]}


def needed(nodes: Sequence[onnx.NodeProto], values: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes, in their order, without which some of ``values`` could not be computed."""
    wanted, kept = set(values), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input, captured(node))
            kept.append(node)
    return kept[::-1]


def without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops initializers, constants and operator sets that nobody uses any more."""
    used = {name for node in model.graph.node for name in [*node.input, *captured(node)]}
    used |= {output.name for output in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in used]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
    domains = {node.domain for node in nodes} | set(_ONNX) | {d for node in nodes for d in _inner_domains(node)}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _inner_domains(node: onnx.NodeProto) -> Iterator[str]:
    for item in node.attribute:
        for graph in [item.g, *item.graphs] if item.HasField("g") or item.graphs else []:
            for inner in graph.node:
                yield inner.domain
                yield from _inner_domains(inner)
