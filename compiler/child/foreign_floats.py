"""One kind of float: graphs in half, bfloat16 or double precision become fp32, which every later pass starts from."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .foreign_tidy import rename_value

_OTHERS = {TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype"}


def to_fp32(model: ModelProto) -> None:
    """Turns every other float into fp32, in place. A double beyond fp32's range becomes its largest value."""
    graph = model.graph
    for tensor in graph.initializer:
        _convert(tensor)
    for node in graph.node:
        _convert_attributes(node)
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in _OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph.ClearField("value_info")


def widen_integers(graph: GraphProto) -> None:
    """Outputs in int32 become int64, the one integer that a release's outputs have."""
    for value in graph.output:
        if value.type.tensor_type.elem_type != TensorProto.INT32:
            continue
        inner = f"{value.name}.int32"
        rename_value(graph, value.name, inner)
        graph.node.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.INT64))
        value.type.tensor_type.elem_type = TensorProto.INT64


def _convert(tensor: TensorProto) -> None:
    if tensor.data_type not in _OTHERS:
        return
    limit = np.finfo(np.float32).max
    array = np.asarray(numpy_helper.to_array(tensor), np.float64)
    finite = np.where(np.isfinite(array), np.clip(array, -limit, limit), array).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(finite.reshape(array.shape), tensor.name))


def _convert_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _convert(attribute.t)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _OTHERS:
            attribute.i = TensorProto.FLOAT
