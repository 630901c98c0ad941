"""Takes out of each layer's bias the mean error that quantization left in its channels.

As for ONNX Runtime's layout (Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction",
ICCV 2019, the empirical variant), but biases are floats here and values keep their names, so that a layer's twin is the
value of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.graph.onnxfile import Probe
from compiler.graph.view import Graph, needed, without_unused

_CHANNEL = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1}


def correct(
    quantized: onnx.ModelProto,
    original: onnx.ModelProto,
    tensors: Sequence[NDArray[np.float32]],
    threads: int,
    progress: Callable[[str], None],
) -> None:
    """Changes the biases of ``quantized`` in place, layer by layer: each sees the corrected ones before it.

    Args:
        quantized: with Q/DQ pairs, its floats still fp32.
        original: the fp32 graph that it was made of.
        tensors: some of the calibration inputs.
    """
    layers = _layers(Graph(quantized))
    biases = {tensor.name: tensor for tensor in quantized.graph.initializer}
    wanted = _means(original, layers, tensors, threads) if layers else {}
    for number, node in enumerate(layers):
        found = _means(quantized, [node], tensors, threads)[node.output[0]]
        bias = biases[node.input[2]]
        corrected = numpy_helper.to_array(bias) + wanted[node.output[0]] - found
        bias.CopyFrom(numpy_helper.from_array(corrected.astype(np.float32), bias.name))
        progress(f"correcting biases, layer {number + 1} of {len(layers)}")


def _layers(graph: Graph) -> list[onnx.NodeProto]:
    """The quantized layers with a bias that no other layer has."""
    found = [n for n in graph.nodes if n.op_type in _CHANNEL and len(n.input) > 2 and _is_quantized(graph, n)]
    return [n for n in found if len(graph.consumers[n.input[2]]) == 1 and graph.constant(n.input[2]) is not None]


def _is_quantized(graph: Graph, node: onnx.NodeProto) -> bool:
    maker = graph.producer.get(node.input[1])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _means(
    model: onnx.ModelProto, layers: Iterable[onnx.NodeProto], tensors: Sequence[NDArray[np.float32]], threads: int
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of the layers' outputs over the tensors."""
    channels = {node.output[0]: _CHANNEL[node.op_type] for node in layers}
    probe = Probe(_up_to(model, list(channels)), list(channels), threads=threads)
    sums: dict[str, NDArray[np.float64]] = {}
    for tensor in tensors:
        for name, value in probe(tensor):
            axes = tuple(axis for axis in range(value.ndim) if axis != channels[name] % value.ndim)
            sums[name] = sums.get(name, np.float64(0)) + np.asarray(value, np.float64).mean(axis=axes) / len(tensors)
    return sums


def _up_to(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """The part of a model that computes ``values``, without outputs: a layer near the entry costs little."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(needed(model.graph.node, values))
    return without_unused(part)
