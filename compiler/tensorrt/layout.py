"""Q/DQ pairs as TensorRT wants them, written down: symmetric int8, and nothing left for the builder to guess.

The rules, each with its source (docs/tensorrt.md tells them at length):

- scales are symmetric, zero points 0, int8 in [-128, 127] (TensorRT's IQuantizeLayer);
- weights per output channel: axis 0 of Conv, 1 of ConvTranspose, the columns of a matrix; activations per tensor;
- pairs stand on the inputs of weighted layers alone, so that Conv, bias and activation fuse; biases stay as they are;
- of a residual sum only the skip is quantized, the other side fuses with its convolution; a transformer's residual
  stream is not quantized at all (ViT-B: 84.5 % with, 5 % without this rule);
- what is concatenated is on one grid, and so is what only moves values about;
- a layer too thin for int8 to pay stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from compiler.graph.view import Graph, name_of
from compiler.tensorrt import pairs
from compiler.tensorrt.half import to_half
from compiler.tensorrt.islands import Range
from compiler.tensorrt.placement import WEIGHTED, decide


def lay_out(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    keep_float: Collection[str] = (),
    half: bool = True,
) -> onnx.ModelProto:
    """``model`` with explicit Q/DQ pairs, strongly typed.

    Args:
        model: fp32, constants folded and batch norms merged (`compiler.quantization.quantize.prepare`).
        ranges: least and greatest value of each float value, as calibration found them.
        keep_float: names of nodes that do not become int8.
        half: what is not int8 becomes fp16 where it is safe; else it stays fp32.

    Raises:
        CompileError: a value has no range.
    """
    quantized = pairs.write(model, decide(model, ranges, keep_float=keep_float), half=half)
    return to_half(quantized, ranges)[0] if half else quantized


def requested(model: onnx.ModelProto) -> dict[str, str]:
    """The precision that a strongly typed graph asks of each weighted node, by name: int8, fp16 or fp32."""
    graph = Graph(model)
    return {name_of(node): _asked(graph, node) for node in graph.nodes if node.op_type in WEIGHTED}


def _asked(graph: Graph, node: onnx.NodeProto) -> str:
    makers = [graph.producer.get(value) for value in node.input[:2]]
    if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return "int8"
    return "fp16" if graph.types.get(node.output[0]) == TensorProto.FLOAT16 else "fp32"
