"""A grid for each channel of a depthwise layer's input, hidden in the weights on either side.

All channels of a value share one grid, and in front of a depthwise layer some reach a tenth of it: they have 25 of its
255 steps. Such a channel can be scaled up in the convolution before and down in the depthwise weights behind, where
every channel has a step of its own anyway: nothing is lost there, and the channel has more of the grid.

After Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.1,
with the ranges of values seen in place of the ranges of weights, and only where no other channel's weights pay for it.

A ReLU does not mind the scale. A clip does: it now ends a scaled channel earlier. So no channel is scaled to more than
half of where the clip ends, or the largest channel: one must go past twice what it was in all calibration frames before
it is cut off there, by the clip or by the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.graph.onnxfile import Probe
from compiler.graph.view import Graph, attribute

FRAMES = 200  # that are looked at, at most
_ROOM = 2.0  # how far past all that was seen of it a channel may go
_MOST = 16.0  # times: a channel that was hardly ever on may yet be, on another day
Tensor = NDArray[np.float32]


@dataclass(frozen=True)
class Edge:
    """A convolution, the activation behind it and the depthwise layer that alone reads it.

    Attributes:
        value: what the depthwise layer reads.
        end: where the activation clips; infinity for a ReLU.
    """

    before: onnx.NodeProto
    behind: onnx.NodeProto
    value: str
    end: float


def edges(graph: Graph) -> list[Edge]:
    """Where channels can be scaled without anyone else seeing it."""
    found = (_edge(graph, node) for node in graph.nodes)
    return [edge for edge in found if edge is not None]


def equalize(
    model: onnx.ModelProto, tensors: Iterable[Tensor], threads: int, progress: Callable[[str], None]
) -> onnx.ModelProto:
    """``model`` with the channels before its depthwise layers scaled alike; itself, if it has no such layer."""
    found = edges(Graph(model))
    if not found:
        return model
    probe, highest = Probe(model, [edge.value for edge in found], threads=threads), dict[str, Tensor]()
    for count, tensor in enumerate(tensors, 1):
        for name, value in probe(tensor):
            most = value.max(axis=(0, *range(2, value.ndim)))
            highest[name] = np.maximum(highest.get(name, 0.0), most)
        progress(f"looking at channels, frame {count}")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tables = {tensor.name: tensor for tensor in made.graph.initializer}
    for edge in found:
        scales = scales_of(highest[edge.value], edge.end)
        _multiply(tables[edge.before.input[1]], scales)
        _multiply(tables[edge.before.input[2]], scales)
        _multiply(tables[edge.behind.input[1]], np.float32(1.0) / scales)
    return made


def scales_of(highest: Tensor, end: float) -> Tensor:
    """What each channel is multiplied by, at least 1, from the most that it was: so that all reach equally far."""
    aim = (float(highest.max()) if np.isinf(end) else end) / _ROOM
    scales = aim / np.maximum(highest, max(aim, 1e-30) / _MOST)
    return np.maximum(scales, 1.0).astype(np.float32)


def _edge(graph: Graph, node: onnx.NodeProto) -> Edge | None:
    if node.op_type != "Conv" or not _own(graph, node.input[1]):
        return None
    weights = graph.sizes(node.input[1])
    if weights[1] != 1 or attribute(node, "group", 1) != weights[0]:
        return None
    clip = _maker(graph, node.input[0], ("Relu", "Clip"))
    before = _maker(graph, clip.input[0], ("Conv",)) if clip is not None else None
    if clip is None or before is None or len(before.input) < 3 or not all(_own(graph, v) for v in before.input[1:3]):
        return None
    end = _end(graph, clip)
    return Edge(before, node, node.input[0], end) if end > 0.0 else None


def _end(graph: Graph, node: onnx.NodeProto) -> float:
    """Where an activation that begins at 0 clips; infinity for a ReLU, 0 if it is anything else."""
    if node.op_type == "Relu":
        return np.inf
    known = all(not name or name in graph.tensors for name in node.input[1:])
    return graph.number(node, 2, np.inf) if known and graph.number(node, 1, -np.inf) == 0.0 else 0.0


def _maker(graph: Graph, value: str, kinds: tuple[str, ...]) -> onnx.NodeProto | None:
    """The node that makes ``value``, of one of these kinds, if nobody but one node reads it."""
    node, alone = graph.producer.get(value), len(graph.consumers[value]) == 1 and value not in graph.outputs
    return node if node is not None and alone and node.op_type in kinds else None


def _own(graph: Graph, name: str) -> bool:
    """Whether a table is one node's alone."""
    return name in graph.tensors and len(graph.consumers[name]) == 1


def _multiply(table: onnx.TensorProto, by: NDArray[np.floating[Any]]) -> None:
    values = numpy_helper.to_array(table)
    scaled = values * by.reshape(-1, *[1] * (values.ndim - 1))
    table.CopyFrom(numpy_helper.from_array(scaled.astype(values.dtype), table.name))
