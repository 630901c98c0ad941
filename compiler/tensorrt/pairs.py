"""Writes the Q/DQ pairs of a layout into a graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.graph.view import Array, Graph, attribute, name_of, opset_of, without_unused
from compiler.tensorrt.islands import LARGEST
from compiler.tensorrt.placement import WEIGHTED, Layout
from skerry.errors import CompileError

_STEP = 2.0**-20  # the least scale: fp16 still holds it to 6 %, and the least weight that it makes 0 is 1e-6
_LEAST_STEP_FP32 = 1e-12
_OPSET, _OPSET_HALF = 13, 19  # the first with scales per channel, and with scales in fp16


def write(model: onnx.ModelProto, layout: Layout, *, half: bool) -> onnx.ModelProto:
    """``model``, still fp32, with the pairs of ``layout``; with ``half`` the scales are such that fp16 holds them.

    Raises:
        CompileError: the opset is too old for Q/DQ pairs of that kind.
    """
    if (opset := opset_of(model)) < (least := _OPSET_HALF if half else _OPSET):
        raise CompileError(f"the graph is of opset {opset}, its Q/DQ pairs need {least}; raise it to 20")
    graph = Graph(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.value_info[:]
    writer = _Writer(graph, layout, half=half)
    for entry in model.graph.input:
        writer.pair(entry.name)
    for node in graph.nodes:
        writer.node(node)
        for output in node.output:
            writer.pair(output)
    made.graph.node.extend(writer.nodes)
    made.graph.initializer.extend(writer.tensors)
    return without_unused(made)


class _Writer:
    def __init__(self, graph: Graph, layout: Layout, *, half: bool) -> None:
        self._graph, self._layout, self._half = graph, layout, half
        self._weights: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, node: onnx.NodeProto) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        name = name_of(node)
        if name in self._layout.skips:
            skip = self._layout.skips[name]
            made.input[list(node.input).index(skip)] = f"{skip}_dq"
        if name in self._layout.layers:
            made.input[0] = f"{node.input[0]}_dq"
            made.input[1] = self._weight(node)
        self.nodes.append(made)

    def pair(self, value: str) -> None:
        """Q and DQ behind ``value``, if the layout wants it: one pair for all who read it quantized."""
        if value not in self._layout.reach:
            return
        scale = _scale(np.array(self._layout.reach[value]), half=self._half)
        scales = [self._tensor(f"{value}_scale", scale), self._tensor(f"{value}_zero", np.array(0, np.int8))]
        self.nodes.append(helper.make_node("QuantizeLinear", [value, *scales], [f"{value}_q"], f"{value}_q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", *scales], [f"{value}_dq"], f"{value}_dq"))

    def _weight(self, node: onnx.NodeProto) -> str:
        """The weights of a layer as int8 with a scale per output channel, behind their DQ."""
        name, axis = node.input[1], 0 if attribute(node, "transB", 0) else WEIGHTED[node.op_type]
        if (name, axis) not in self._weights:
            self._weights[name, axis] = f"{name}_dq{axis}"
            weights = self._graph.constant(name)
            assert weights is not None  # noqa: S101 - `decide` looked
            others = tuple(i for i in range(weights.ndim) if i != axis)
            scale = _scale(np.abs(weights).max(axis=others), half=self._half)
            steps = np.rint(
                weights.astype(np.float32)
                / scale.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
            )
            inputs = [
                self._tensor(f"{name}_q{axis}", np.clip(steps, -127, 127).astype(np.int8)),
                self._tensor(f"{name}_scale{axis}", scale),
                self._tensor(f"{name}_zero{axis}", np.zeros(scale.shape, np.int8)),
            ]
            made = helper.make_node("DequantizeLinear", inputs, [f"{name}_dq{axis}"], f"{name}_dq{axis}", axis=axis)
            self.nodes.append(made)
        return self._weights[name, axis]

    def _tensor(self, name: str, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name


def _scale(reach: Array, *, half: bool) -> Array:
    """Steps of a symmetric grid that reaches ``reach`` with 127 of them; fp32, but with ``half`` of fp16's values."""
    exact = np.asarray(reach, np.float64) / 127.0
    if not half:
        return np.maximum(exact, _LEAST_STEP_FP32).astype(np.float32)
    rounded = np.minimum(np.maximum(exact, _STEP), LARGEST).astype(np.float16)
    up = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)  # what is largest still fits
    return np.asarray(np.minimum(up, np.float16(LARGEST)), np.float32)
