"""From fp32 to a graph that says itself what is fp16: every value typed, every cast written down.

TensorRT 11 knows no "fp16 allowed" any more, and 10 has deprecated it: what the graph says is what is built. Inputs and
outputs stay fp32, so that a caller sees no difference.

What would not survive stays fp32, see compiler/tensorrt/islands.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.graph.view import ONNX, Graph, captured, name_of, subgraphs, without_unused
from compiler.tensorrt.islands import FIXED, LINKS, Island, Range, analyse

# Inputs that are fp32 in any case: the scales of a Resize (ONNX operator specification).
_FLOAT_INPUTS = {"Resize": {2}, "Upsample": {1}}


def to_half(
    model: onnx.ModelProto, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[Island]]:
    """``model`` in fp16 as far as it is safe, strongly typed, and its islands in the graph's order.

    Args:
        ranges: least and greatest value of each float value, as calibration found them.
        keep_float: names of nodes that stay fp32 in any case.
    """
    islands = analyse(model, ranges, keep_float=keep_float)
    return convert(model, {island.node for island in islands}), islands


def convert(model: onnx.ModelProto, floats: Collection[str]) -> onnx.ModelProto:
    """``model`` with every float node in fp16, but for those called in ``floats`` and what cannot be."""
    return _Typing(model, floats).write()


class _Typing:
    """Writes a graph anew: each node in its type, a cast wherever two types meet."""

    def __init__(self, model: onnx.ModelProto, floats: Collection[str]) -> None:
        self._graph = Graph(model)
        self._floats = {name_of(n) for n in self._graph.nodes if self._stays(n)} | set(floats)
        self._links_follow()
        inner = {name for node in self._graph.nodes for name in captured(node)}
        self._float_names = self._graph.outputs | inner  # read by what expects fp32 under this very name
        given = [*model.graph.input, *model.graph.initializer]
        self._typed: dict[tuple[str, int], str] = {(v.name, TensorProto.FLOAT): v.name for v in given}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def write(self) -> onnx.ModelProto:
        for node in self._graph.nodes:
            self._add(node)
        made = onnx.ModelProto()
        made.CopyFrom(self._graph.model)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(self._tensors)
        return without_unused(made)

    def _stays(self, node: onnx.NodeProto) -> bool:
        return node.op_type in FIXED or node.domain not in ONNX or any(subgraphs(node))

    def _links_follow(self) -> None:
        """A Q/DQ pair is of the type of those that read it, so that no cast stands between it and its layer."""
        for node in reversed(self._graph.nodes):
            if node.op_type not in LINKS:
                continue
            readers = self._graph.consumers.get(node.output[0], [])
            scale = self._graph.constant(node.input[1])
            vanishes = scale is None or bool((scale.astype(np.float16) == 0).any())
            if vanishes or (readers and all(name_of(reader) in self._floats for reader in readers)):
                self._floats.add(name_of(node))

    def _add(self, node: onnx.NodeProto) -> None:
        kind = TensorProto.FLOAT if name_of(node) in self._floats else TensorProto.FLOAT16
        made = onnx.NodeProto()
        made.CopyFrom(node)
        keep = _FLOAT_INPUTS.get(node.op_type, set())
        for index, value in enumerate(node.input):
            if value and self._graph.is_float(value):
                made.input[index] = self._as(value, TensorProto.FLOAT if index in keep else kind)
        self._nodes.append(made)
        for index, value in enumerate(node.output):
            if value and self._graph.is_float(value):
                renamed = kind == TensorProto.FLOAT16 and value in self._float_names
                made.output[index] = self._typed[value, kind] = f"{value}_fp16" if renamed else value
                if renamed:
                    self._cast(value, value, TensorProto.FLOAT)

    def _as(self, value: str, kind: int) -> str:
        """The name under which ``value`` is of type ``kind``; makes it if need be."""
        if (value, kind) not in self._typed:
            name = f"{value}_{'fp16' if kind == TensorProto.FLOAT16 else 'fp32'}"
            constant = self._graph.constant(value)
            if constant is None:
                self._cast(value, name, kind)
            else:
                with np.errstate(over="ignore"):  # an infinity stays one; what is finite has been looked at
                    self._tensors.append(numpy_helper.from_array(constant.astype(np.float16), name))
                self._typed[value, kind] = name
        return self._typed[value, kind]

    def _cast(self, value: str, target: str, kind: int) -> None:
        """Makes ``value`` of type ``kind``, called ``target``, from what it is in the other type."""
        other = TensorProto.FLOAT if kind == TensorProto.FLOAT16 else TensorProto.FLOAT16
        self._nodes.append(helper.make_node("Cast", [self._typed[value, other]], [target], f"{target}_cast", to=kind))
        self._typed[value, kind] = target
