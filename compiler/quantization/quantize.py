"""INT8 for ONNX Runtime's CPU provider: one calibration, a layout for each kind of dot product.

- "u8s8": activations uint8, weights int8 per channel. For x86-64 with VNNI, which adds products in 32 bits.
- "u8s8-7bit": the same with 7 bits a weight, on average. Without VNNI, vpmaddubsw adds two products in 16 bits and
  saturates; 255 steps times 128, which two weights share, do not (compiler/quantization/steps.py).
- "s8s8": the grids of "u8s8" moved by 128, for arm64's SDOT (onnxruntime pull request 9902). Its literal answers are
  those of "u8s8", bit for bit.
- "dynamic": linear layers alone, activations put on a grid of their own at each run. Needs no calibration. Weights have
  those 7 bits, so that one file is right on every CPU.

Which nodes run in int8 is decided in compiler/quantization/placement.py. Biases are corrected afterwards
(compiler/quantization/correct.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from compiler.graph.view import Graph, opset_of
from compiler.quantization import dynamic
from compiler.quantization.placement import place
from compiler.quantization.qdq import Kind, Range, write
from skerry.disk import Disk
from skerry.errors import CompileError, UsageError
from skerry.execution.onnxrt import PROVIDER, session_options

_KINDS = {
    "u8s8": Kind(signed=False, narrow=False),
    "u8s8-7bit": Kind(signed=False, narrow=True),
    "s8s8": Kind(signed=True, narrow=False),
}
LAYOUTS = (*_KINDS, "dynamic")
MIN_OPSET = 13
VERSION = 2  # of what is written for the same ranges


def prepare(source: Path, target: Path) -> None:
    """Folds constants and batch norm, infers shapes and names every node, as the layouts expect. Writes ``target``."""
    model = onnx.load(source)
    tables = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in tables]  # old exporters list tables there, too
    model.graph.ClearField("input")
    model.graph.input.extend(inputs)
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
    model = onnx.shape_inference.infer_shapes(onnx.load(target))
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}:{node.output[0]}"
    Disk().replace(target, model.SerializeToString(deterministic=True))


def laid_out(
    model: onnx.ModelProto, ranges: Mapping[str, Range], *, layout: str, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """A quantized copy of a prepared fp32 ``model``.

    Args:
        ranges: of every float value (`compiler.quantization.calibrate.ranges`); "dynamic" needs none.
        keep_float: names of nodes that stay as they are. An edge has a Q/DQ pair only if an int8 node is at one end:
            ONNX Runtime's int8 convolution writes int8, whoever reads it.

    Raises:
        UsageError: there is no such layout.
        CompileError: the graph was not prepared, or its opset is too old.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"ONNX Runtime has no layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    names = {node.name for node in model.graph.node}
    if len(names - {""}) < len(model.graph.node):
        raise CompileError("every node of the graph must have a name of its own; `prepare` it first")
    if (opset := opset_of(model)) < MIN_OPSET:
        raise CompileError(
            f"opset {opset} has no grid per channel; expected {MIN_OPSET} or later: convert the model first"
        )
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = Graph(model)
    if layout == "dynamic":
        dynamic.write(quantized, graph, keep_float)
    else:
        write(quantized, graph, place(graph, keep_float), ranges, _KINDS[layout])
    return quantized


def lay_out(
    source: Path, target: Path, ranges: Mapping[str, Range], *, layout: str, keep_float: Collection[str] = ()
) -> None:
    """`laid_out` from file to file: the same arguments give the same bytes."""
    quantized = laid_out(onnx.load(source), ranges, layout=layout, keep_float=keep_float)
    Disk().replace(target, quantized.SerializeToString(deterministic=True))
