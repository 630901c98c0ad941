"""Dynamic int8 for linear layers: weights are stored in int8, activations get their grid at each run.

Written as ONNX's own operators, in the order in which ONNX Runtime fuses them into one kernel. For transformers on a
CPU: no range can be wrong, since none is fixed, and what is not a linear layer stays as it was.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.graph.view import Graph, attribute, without_unused
from compiler.quantization.placement import multiplies
from compiler.quantization.steps import MOST, step_widths


def write(model: onnx.ModelProto, graph: Graph, keep_float: Collection[str]) -> None:
    """Replaces the linear layers of ``model``, of which ``graph`` is the view, in place."""
    nodes: list[onnx.NodeProto] = []
    tables: dict[str, onnx.TensorProto] = {}
    read: set[str] = set()
    for node in model.graph.node:
        linear = node.op_type in ("MatMul", "Gemm") and node.name not in keep_float and multiplies(graph, node)
        if not linear:
            nodes.append(node)
            continue
        if node.input[0] not in read:
            read.add(node.input[0])
            nodes.append(_measured(node.input[0]))
        nodes += _product(node, _table(node, graph, tables))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tables.values())
    without_unused(model)


def _parts(value: str) -> list[str]:
    return [f"{value}_quantized", f"{value}_scale", f"{value}_zero_point"]


def _measured(value: str) -> onnx.NodeProto:
    return helper.make_node("DynamicQuantizeLinear", [value], _parts(value), f"{value}_QuantizeLinear")


def _table(node: onnx.NodeProto, graph: Graph, tables: dict[str, onnx.TensorProto]) -> str:
    """Stores the weights as [inputs, outputs], a scale for each output, and returns the name they go by."""
    across = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    own = f"{node.input[1]}_transposed" if across else node.input[1]
    table: NDArray[np.float32] = numpy_helper.to_array(graph.tensors[node.input[1]])
    table = table.T if across else table
    steps = np.maximum(step_widths(table.T, in_16_bits=True), 1e-12).astype(np.float32)  # right on every CPU
    stored = np.clip(np.rint(table / steps), -MOST, MOST).astype(np.int8)
    for name, value in zip(_parts(own), (stored, steps, np.zeros(len(steps), np.int8)), strict=True):
        tables[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    return own


def _product(node: onnx.NodeProto, table: str) -> list[onnx.NodeProto]:
    """The nodes that stand for ``node``, and end in its output."""
    (value, scale, zero), (weight, steps, none) = _parts(node.input[0]), _parts(table)
    out, made = node.output[0], helper.make_node
    bias = len(node.input) > 2 and bool(node.input[2])
    product = f"{out}_product" if bias else out
    nodes = [
        made("MatMulInteger", [value, weight, zero, none], [f"{out}_sum"], f"{node.name}_quant"),
        made("Cast", [f"{out}_sum"], [f"{out}_cast"], f"{node.name}_cast", to=onnx.TensorProto.FLOAT),
        made("Mul", [scale, steps], [f"{out}_scales"], f"{node.name}_scales"),
        made("Mul", [f"{out}_cast", f"{out}_scales"], [product], f"{node.name}_scaled"),
    ]
    return [*nodes, made("Add", [product, node.input[2]], [out], f"{node.name}_bias")] if bias else nodes
