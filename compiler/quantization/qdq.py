"""Writes Q/DQ pairs: a fp32 graph and a `Placement` become the graph that ONNX Runtime fuses into int8 kernels.

ONNX Runtime has a writer of its own. This one is a tenth of its size, leaves out what no kernel takes up, and takes
milliseconds, where a search writes hundreds of layouts (docs/decisions/0009). Names are ONNX Runtime's, so that a
value and a table of weights can be found again in the quantized graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.graph.view import Graph, attribute, without_unused
from compiler.quantization.placement import Placement
from compiler.quantization.steps import MOST, adds_in_16_bits, as_added, step_widths

Range = tuple[float, float]
_TINY = 1e-12  # of a scale: a channel of zeros has none
_BIAS_STEPS = 2.0**31 - 1024.0  # what int32 holds, and float32 can say


@dataclass(frozen=True)
class Kind:
    """How numbers lie in eight bits.

    Attributes:
        signed: activations are int8, else uint8; the grid is the same, moved by 128.
        narrow: made for kernels that add two products in 16 bits.
    """

    signed: bool
    narrow: bool


def write(model: onnx.ModelProto, graph: Graph, placement: Placement, ranges: Mapping[str, Range], kind: Kind) -> None:
    """Puts ``model``, of which ``graph`` is the view, on the placement's grids, in place."""
    writer = _Writer(graph, kind)
    scales = {value: writer.grid(value, ranges[like]) for value, like in placement.grids.items()}
    _fold(model, placement)
    for node in model.graph.node:
        if node.name in placement.nodes:
            writer.tables(node, scales)
    ends = placement.bound.intersection(graph.outputs)
    _read_grids(model, placement, ends)
    _replace(model, {value: writer.pair(value, end=value in ends) for value in placement.grids}, writer)


class _Writer:
    """Collects the new nodes and tensors."""

    def __init__(self, graph: Graph, kind: Kind) -> None:
        self._graph, self._kind = graph, kind
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.restored: list[onnx.NodeProto] = []  # dequantized tables, which everything else follows
        self._written: dict[tuple[str, object], str] = {}

    def grid(self, value: str, found: Range) -> np.float32:
        """The scale of an activation: 256 steps from the least to the largest, 0 being one of them."""
        low, high = min(found[0], 0.0), max(found[1], 0.0)
        scale = np.float32(max((high - low) / 255.0, _TINY))
        zero = int(np.clip(np.rint(-low / float(scale)), 0, 255))
        dtype, shift = (np.int8, 128) if self._kind.signed else (np.uint8, 0)
        self._keep(_scale(value), np.array(scale))
        self._keep(_zero(value), np.array(zero - shift, dtype))
        return scale

    def pair(self, value: str, *, end: bool) -> list[onnx.NodeProto]:
        """The two nodes behind ``value``; at an ``end`` of the graph what leaves them has the value's name."""
        grid, stored = [_scale(value), _zero(value)], f"{value}_QuantizeLinear_Output"
        source, restored = (_before(value), value) if end else (value, onto(value))
        return [
            helper.make_node("QuantizeLinear", [source, *grid], [stored], f"{value}_QuantizeLinear"),
            helper.make_node("DequantizeLinear", [stored, *grid], [restored], f"{value}_DequantizeLinear"),
        ]

    def tables(self, node: onnx.NodeProto, scales: Mapping[str, np.float32]) -> None:
        """Quantizes the constants of ``node`` and lets it read those."""
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            for index, value in enumerate(node.input):
                if node.op_type in ("Add", "Mul", "Concat") and value in self._graph.tensors:
                    node.input[index] = self._constant(value)
            return
        axis = _channel_axis(node)
        table = self._array(node.input[1])
        bias = self._array(node.input[2]) if len(node.input) > 2 and self._is_bias(node.input[2]) else None
        per_step = float(scales[node.input[0]])
        least = _TINY if bias is None else np.maximum(np.abs(bias) / (per_step * _BIAS_STEPS), _TINY)
        narrow = self._kind.narrow and adds_in_16_bits(node, table)
        widths = step_widths(as_added(node, table, axis), in_16_bits=narrow)
        steps = np.maximum(widths, least).astype(np.float32)
        if bias is not None:
            node.input[2] = self._bias(node.input[2], bias, np.float32(per_step) * steps)
        node.input[1] = self._weight(node.input[1], table, steps, axis)

    def _is_bias(self, value: str) -> bool:
        return value in self._graph.tensors and self._graph.is_float(value)

    def _weight(self, name: str, table: NDArray[np.float32], steps: NDArray[np.float32], axis: int) -> str:
        shape = [-1 if a == axis else 1 for a in range(table.ndim)]
        stored = np.clip(np.rint(table / steps.reshape(shape)), -MOST, MOST).astype(np.int8)
        return self._restore(name, stored, steps, np.zeros(len(steps), np.int8), axis)

    def _bias(self, name: str, bias: NDArray[np.float32], steps: NDArray[np.float32]) -> str:
        stored = np.rint(bias.astype(np.float64) / steps).astype(np.int32)
        return self._restore(name, stored, steps, np.zeros(len(steps), np.int32), 0)

    def _constant(self, name: str) -> str:
        table = self._array(name)
        self.grid(name, (float(table.min()), float(table.max())))
        scale, zero = (numpy_helper.to_array(self.tensors[n]) for n in (_scale(name), _zero(name)))
        limits = np.iinfo(zero.dtype)
        stored = np.clip(np.rint(table / scale) + int(zero), limits.min, limits.max).astype(zero.dtype)
        return self._restore(name, stored, scale, zero, None)

    def _restore(
        self,
        name: str,
        stored: NDArray[np.generic],
        steps: NDArray[np.float32],
        zero: NDArray[np.generic],
        axis: int | None,
    ) -> str:
        """Keeps a quantized table and the node that restores it. A table is stored once for each grid it is put on."""
        grid = (axis, stored.tobytes(), steps.tobytes())
        if (name, grid) in self._written:
            return self._written[name, grid]
        copies = sum(1 for other, _ in self._written if other == name)
        own = name if not copies else f"{name}_{copies + 1}"
        self._keep(f"{own}_quantized", stored)
        self._keep(_scale(own), steps)
        self._keep(_zero(own), zero)
        inputs = [f"{own}_quantized", _scale(own), _zero(own)]
        self.restored.append(
            helper.make_node("DequantizeLinear", inputs, [onto(own)], f"{own}_DequantizeLinear", axis=axis)
        )
        self._written[name, grid] = onto(own)
        return onto(own)

    def _array(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self._graph.tensors[name])

    def _keep(self, name: str, value: NDArray[np.generic]) -> None:
        self.tensors[name] = numpy_helper.from_array(value, name)


def onto(value: str) -> str:
    """The name of ``value`` behind its Q/DQ pair."""
    return f"{value}_DequantizeLinear_Output"


def _scale(name: str) -> str:
    return f"{name}_scale"


def _zero(name: str) -> str:
    return f"{name}_zero_point"


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the weights along which the output's channels lie."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def _before(value: str) -> str:
    """The name, before its pair, of a value that is an output of the graph."""
    return f"{value}_QuantizeLinear_Input"


def _fold(model: onnx.ModelProto, placement: Placement) -> None:
    """Takes out the nodes that a grid replaces: their maker writes what they wrote."""
    renamed = {n.input[0]: n.output[0] for n in model.graph.node if n.name in placement.folded}
    kept = [node for node in model.graph.node if node.name not in placement.folded]
    for node in kept:
        for index, value in enumerate(node.output):
            node.output[index] = renamed.get(value, value)
    model.graph.ClearField("node")
    model.graph.node.extend(kept)


def _read_grids(model: onnx.ModelProto, placement: Placement, ends: Collection[str]) -> None:
    """Lets int8 nodes read what is behind the pairs, and float nodes too where the kernel before writes int8."""
    for node in model.graph.node:
        for index, value in enumerate(node.input):
            if value in placement.bound or (value in placement.grids and node.name in placement.nodes):
                node.input[index] = value if value in ends else onto(value)


def _replace(model: onnx.ModelProto, pairs: Mapping[str, list[onnx.NodeProto]], writer: _Writer) -> None:
    """Puts each pair behind the node that makes its value, and the new tensors in the place of the old."""
    nodes = [new for value in model.graph.input for new in pairs.get(value.name, [])] + writer.restored
    for node in model.graph.node:
        behind = [new for value in node.output for new in pairs.get(value, [])]
        for index, value in enumerate(node.output):
            if value in pairs and value in pairs[value][1].output:
                node.output[index] = _before(value)
        nodes += [node, *behind]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(writer.tensors.values())
    without_unused(model)
