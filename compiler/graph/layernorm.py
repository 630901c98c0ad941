"""Puts a layer normalization that was taken apart together again.

Taken apart, it squares (``Pow``) and sums in the precision of the graph: in half precision the square of 256 is already
past what it holds. As one ``LayerNormalization`` its mean and variance are computed in fp32 by definition
(``stash_type`` 1), and a runtime has one kernel for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.graph.view import Graph, attribute, name_of, needed, opset_of

_OPSET = 17  # the first with LayerNormalization


@dataclass(frozen=True)
class _Found:
    """The parts of one normalization: ``last`` is the node whose output it replaces."""

    value: str
    axis: int
    epsilon: float
    last: onnx.NodeProto
    scale: str | None = None
    bias: str | None = None


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with each normalization over the last axes as one node, and the names of the new nodes.

    The names are those of the nodes that they stand for: the one that made the same value.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    if opset_of(model) < _OPSET:
        return fused, []
    graph = Graph(model)
    found = {name_of(f.last): f for node in graph.nodes if node.op_type == "Sqrt" and (f := _match(graph, node))}
    if not found:
        return fused, []
    nodes = [part for node in graph.nodes for part in _replacement(graph, fused, node, found.get(name_of(node)))]
    del fused.graph.node[:]
    fused.graph.node.extend(needed(nodes, graph.outputs))
    return fused, list(found)


def _replacement(
    graph: Graph, fused: onnx.ModelProto, node: onnx.NodeProto, found: _Found | None
) -> list[onnx.NodeProto]:
    if found is None:
        return [node]
    scale = found.scale
    if scale is None:
        shape = graph.shape(found.value) or []
        scale = f"{node.output[0]}_ones"
        ones = np.ones([dim or 1 for dim in shape[found.axis :]], np.float32)
        fused.graph.initializer.append(numpy_helper.from_array(ones, scale))
    inputs = [found.value, scale, *([found.bias] if found.bias else [])]
    made = helper.make_node(
        "LayerNormalization", inputs, [node.output[0]], name_of(node), axis=found.axis, epsilon=found.epsilon
    )
    made.metadata_props.extend(node.metadata_props)
    return [made]


def _match(graph: Graph, sqrt: onnx.NodeProto) -> _Found | None:
    """The normalization around ``sqrt``: x - mean, over the root of the mean of its square plus epsilon."""
    add = graph.producer.get(sqrt.input[0])
    epsilon = _scalar(graph, add) if add is not None and add.op_type == "Add" else None
    variance = _maker(graph, add, "ReduceMean")
    centred = _squared(graph, variance)
    subtract = graph.producer.get(centred) if centred else None
    if epsilon is None or variance is None or subtract is None or subtract.op_type != "Sub":
        return None
    value = subtract.input[0]
    mean = graph.producer.get(subtract.input[1])
    axis = _axis(graph, variance, value)
    if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != value or axis is None:
        return None
    divided = _divided(graph, sqrt, subtract)
    if divided is None or _axis(graph, mean, value) != axis:
        return None
    return _with_weights(graph, _Found(value, axis, epsilon, divided))


def _maker(graph: Graph, node: onnx.NodeProto | None, kind: str) -> onnx.NodeProto | None:
    makers = [graph.producer.get(value) for value in node.input] if node is not None else []
    return next((maker for maker in makers if maker is not None and maker.op_type == kind), None)


def _scalar(graph: Graph, node: onnx.NodeProto) -> float | None:
    constants = [graph.constant(value) for value in node.input]
    return next((float(c.reshape(-1)[0]) for c in constants if c is not None and c.size == 1), None)


def _squared(graph: Graph, mean: onnx.NodeProto | None) -> str | None:
    """What ``mean`` is the mean square of."""
    square = graph.producer.get(mean.input[0]) if mean is not None else None
    if square is None:
        return None
    if square.op_type == "Mul" and square.input[0] == square.input[1]:
        return str(square.input[0])
    return str(square.input[0]) if square.op_type == "Pow" and _scalar(graph, square) == 2.0 else None


def _axis(graph: Graph, mean: onnx.NodeProto, value: str) -> int | None:
    """The first of the axes that are averaged, from the back, if they are the last ones; None if not."""
    shape = graph.shape(value)
    axes = graph.constant(mean.input[1]) if len(mean.input) > 1 else None
    found = axes.tolist() if axes is not None else next((a.ints for a in mean.attribute if a.name == "axes"), None)
    if shape is None or not found or not attribute(mean, "keepdims", 1):
        return None
    backwards = sorted(int(axis) % len(shape) - len(shape) for axis in found)
    return backwards[0] if backwards == list(range(-len(backwards), 0)) else None


def _divided(graph: Graph, sqrt: onnx.NodeProto, subtract: onnx.NodeProto) -> onnx.NodeProto | None:
    """The node that divides the centred value by the root, as a division or by its reciprocal."""
    for reader in graph.consumers.get(sqrt.output[0], []):
        if reader.op_type == "Div" and list(reader.input) == [subtract.output[0], sqrt.output[0]]:
            return reader
        if reader.op_type == "Reciprocal":
            for product in graph.consumers.get(reader.output[0], []):
                if product.op_type == "Mul" and set(product.input) == {reader.output[0], subtract.output[0]}:
                    return product
    return None


def _with_weights(graph: Graph, found: _Found) -> _Found:
    """Takes in the multiplication and the addition behind, where nobody else reads in between."""
    scaled = _weighted(graph, found, "Mul")
    if scaled is None:
        return found
    found = _Found(found.value, found.axis, found.epsilon, scaled[0], scale=scaled[1])
    shifted = _weighted(graph, found, "Add")
    return (
        found
        if shifted is None
        else _Found(found.value, found.axis, found.epsilon, shifted[0], found.scale, shifted[1])
    )


def _weighted(graph: Graph, found: _Found, kind: str) -> tuple[onnx.NodeProto, str] | None:
    made = found.last.output[0]
    readers = graph.consumers.get(made, [])
    if len(readers) != 1 or readers[0].op_type != kind or made in graph.outputs:
        return None
    shape = graph.shape(found.value) or []
    for name in readers[0].input:
        constant = graph.constant(name)
        if constant is not None and list(constant.shape) == shape[found.axis :]:
            return readers[0], name
    return None
