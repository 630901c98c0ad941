"""Half precision as an accelerator computes it, on a CPU that has no kernels for it.

ONNX Runtime's CPU runs most half precision nodes in single precision and does not round in between, even with every
optimization off: a value that overflows on the device is fine here. `rounded` gives the graph that does overflow:
single precision kernels, and each value rounded to half precision where the model says that it is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with each half precision value computed in single precision, then rounded; values keep their names.

    A model without half precision comes back as it is. Inputs keep their type, outputs of half become single precision.
    """
    halves = _half_values(model)
    if not halves:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = [*_wide_inputs(graph), *(step for node in graph.node for step in _rounding(node, halves))]
    del graph.node[:]
    graph.node.extend(nodes)
    for output in graph.output:
        if output.type.tensor_type.elem_type == _HALF:
            output.type.tensor_type.elem_type = _SINGLE
    return made


def _half_values(model: onnx.ModelProto) -> set[str]:
    """The half precision values that nodes compute."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.output]}
    return {value for node in model.graph.node for value in node.output if kinds.get(value) == _HALF}


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _wide_inputs(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Casts behind the half precision inputs, which every reader then reads."""
    for entry in graph.input:
        if entry.type.tensor_type.elem_type == _HALF:
            wide = f"{entry.name}/single"
            for node in graph.node:
                for index, value in enumerate(node.input):
                    node.input[index] = wide if value == entry.name else value
            yield helper.make_node("Cast", [entry.name], [wide], to=_SINGLE)


def _rounding(node: onnx.NodeProto, halves: set[str]) -> Iterator[onnx.NodeProto]:
    """A node in single precision, and the roundings of what it gives."""
    exact = onnx.NodeProto()
    exact.CopyFrom(node)
    for attribute in exact.attribute:
        _widen(attribute.t)
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
            attribute.i = _SINGLE
    casts = []
    for index, value in enumerate(node.output):
        if value in halves:
            exact.output[index] = f"{value}/exact"
            casts.append(helper.make_node("Cast", [f"{value}/exact"], [f"{value}/half"], to=_HALF))
            casts.append(helper.make_node("Cast", [f"{value}/half"], [value], to=_SINGLE))
    yield exact
    yield from casts
