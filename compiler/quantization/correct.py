"""Bias correction: what quantization added to a channel on average is taken out of its bias.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, the empirical
variant: layer after layer in the graph's order, so that each one is corrected on what the corrected ones before it
give. The Q/DQ pairs are run literally, so that the result does not depend on this machine's kernels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.graph.onnxfile import Probe
from compiler.graph.view import Graph, reads

FRAMES = 32
_ROOM = 1 << 30  # bytes that the frames' values between two layers may take
_LEAST_FRAMES = 8
_LAYERS = frozenset({"Conv", "Gemm", "ConvTranspose"})
Tensor = NDArray[np.float32]
Array = NDArray[Any]  # a value between layers, of whatever type the graph says


@dataclass(frozen=True)
class _Layer:
    """A layer with a bias of its own.

    Attributes:
        output: the value that has the bias in it, before its pair.
        bias: name of the stored bias; in the quantized graph int32 with ``scale``, or float.
        axis: along which its output's channels lie.
    """

    output: str
    bias: str
    axis: int
    scale: str | None = None

    @property
    def origin(self) -> str:
        """The bias's name in the fp32 graph."""
        return self.bias.removesuffix("_quantized") if self.scale else self.bias


def correct_biases(
    quantized: onnx.ModelProto,
    original: onnx.ModelProto,
    tensors: Sequence[Tensor],
    threads: int,
    progress: Callable[[str], None],
) -> None:
    """Takes the mean error per channel out of each int8 layer's bias, in place and in the graph's order."""
    twins = {layer.origin: layer for layer in _layers(original)}
    layers = [layer for layer in _layers(quantized, int8=True) if layer.origin in twins]
    if not layers:
        return
    tensors = tensors[: affordable(original, len(tensors))]
    wanted = _means(original, [twins[layer.origin] for layer in layers], tensors, threads)
    biases = {t.name: t for t in quantized.graph.initializer}
    walk = Walk(quantized, tensors, threads)
    for number, layer in enumerate(layers):
        walk.reach(layer.output)
        found = sum(_channel_mean(frame[layer.output], layer.axis) for frame in walk.frames) / len(tensors)
        moved = _move(biases, layer, wanted[twins[layer.origin].output] - found)
        for frame in walk.frames:
            frame[layer.output] += _along(moved, layer.axis, frame[layer.output].ndim)
        progress(f"correcting biases, layer {number + 1} of {len(layers)}")


def affordable(model: onnx.ModelProto, count: int) -> int:
    """How many of ``count`` frames can be held between two layers of ``model`` at once. A photo in a small net: all."""
    graph = Graph(model)
    last = {value: number for number, node in enumerate(graph.nodes) for value in reads(node)}
    live = {value: 4 * math.prod(graph.sizes(value)) for value in graph.inputs}
    peak = sum(live.values())
    for number, node in enumerate(graph.nodes):
        live.update((value, 4 * math.prod(graph.sizes(value))) for value in node.output)
        peak = max(peak, sum(live.values()))
        live = {value: size for value, size in live.items() if last.get(value, -1) > number}
    return min(count, max(_LEAST_FRAMES, _ROOM // max(peak, 1)))


def _move(biases: dict[str, onnx.TensorProto], layer: _Layer, by: NDArray[np.float64]) -> NDArray[np.float32]:
    """Changes a stored bias; returns by how much it now is another one, which rounding has a part in."""
    stored = numpy_helper.to_array(biases[layer.bias])
    scale = np.float32(1.0) if layer.scale is None else numpy_helper.to_array(biases[layer.scale])
    steps = by / scale if layer.scale is None else np.rint(by / scale)
    limits = (-np.inf, np.inf) if layer.scale is None else (-(2.0**31), 2.0**31 - 1)
    moved = np.clip(stored + steps, *limits).astype(stored.dtype)
    biases[layer.bias].CopyFrom(numpy_helper.from_array(moved, layer.bias))
    return np.asarray((moved.astype(np.float64) - stored) * scale, np.float32)


class Walk:
    """Computes a graph piece by piece for all frames together, so that what is known is changed before what follows.

    Attributes:
        frames: for each, the values that the rest of the graph still needs.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[Tensor], threads: int) -> None:
        self._model, self._threads = model, threads
        self._fixed = {t.name for t in model.graph.initializer}
        entry = next(v.name for v in model.graph.input if v.name not in self._fixed)
        for node in model.graph.node:
            if self._fixed.issuperset(reads(node)):
                self._fixed.update(node.output)  # a dequantized table: cheaper to compute again than to keep
        self._left = [node for node in model.graph.node if not self._fixed.issuperset(reads(node))]
        self.frames: list[dict[str, Array]] = [{entry: tensor} for tensor in tensors]

    def reach(self, value: str) -> None:
        """Computes ``value`` and no more than it needs; leaves it in `frames`."""
        part, done = self._part(value, self.frames[0])
        self._left = [node for node in self._left if id(node) not in done]
        needed = {v for node in self._left for v in reads(node)}
        made = [v for node in part.graph.node for v in node.output if v not in self._fixed]
        probe = Probe(part, [v for v in made if v in needed or v == value], threads=self._threads, literal=True)
        for number, frame in enumerate(self.frames):
            made_here = dict(probe.run({name: frame[name] for name in probe.inputs}))
            found = {**frame, **made_here}
            self.frames[number] = {name: found[name] for name in found if name in needed or name == value}

    def _part(self, value: str, known: Mapping[str, Array]) -> tuple[onnx.ModelProto, set[int]]:
        """The nodes that lead from ``known`` values to ``value``, as a graph."""
        wanted, nodes = {value}, []
        for node in reversed(self._model.graph.node):
            if wanted.intersection(node.output) and not known.keys() & set(node.output):
                wanted.update(reads(node))
                nodes.append(node)
        part = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.graph.name = "part"
        part.graph.node.extend(reversed(nodes))
        for name in sorted(wanted.intersection(known)):
            dtype = helper.np_dtype_to_tensor_dtype(known[name].dtype)
            part.graph.input.append(helper.make_tensor_value_info(name, dtype, None))
        part.graph.initializer.extend(t for t in self._model.graph.initializer if t.name in wanted)
        part.graph.output.append(helper.make_empty_tensor_value_info(value))
        return part, {id(node) for node in nodes}


def _layers(model: onnx.ModelProto, *, int8: bool = False) -> list[_Layer]:
    """The layers whose bias is theirs alone, in the graph's order; of a quantized graph only those in ``int8``.

    A matrix product's bias stands in an Add behind it, in float in both graphs.
    """
    makers = {value: node for node in model.graph.node for value in node.output}
    uses = Counter(value for node in model.graph.node for value in reads(node))
    constants = {t.name for t in model.graph.initializer if uses[t.name] == 1}  # a shared bias cannot serve two
    found = []
    for node in model.graph.node:
        layer = _biased(node, makers, constants)
        if layer is not None and (not int8 or _restores(makers.get(_source(node, makers)))):
            found.append(layer)
    return found


def _biased(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: set[str]) -> _Layer | None:
    if node.op_type in _LAYERS and len(node.input) > 2:
        restored = makers.get(node.input[2])
        if _restores(restored) and restored.input[0] in constants:
            return _Layer(node.output[0], restored.input[0], 1, restored.input[1])
        return _Layer(node.output[0], node.input[2], 1) if node.input[2] in constants else None
    bias = next((v for v in node.input if v in constants), None)
    is_linear = node.op_type == "Add" and bias is not None and _product(node, makers) is not None
    return _Layer(node.output[0], bias, -1) if is_linear and bias else None


def _source(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> str:
    """What the layer that ends in ``node`` reads."""
    product = _product(node, makers) if node.op_type == "Add" else None
    return str((product or node).input[0])


def _product(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    return next((makers[v] for v in node.input if v in makers and makers[v].op_type == "MatMul"), None)


def _restores(node: onnx.NodeProto | None) -> TypeGuard[onnx.NodeProto]:
    return node is not None and node.op_type == "DequantizeLinear"


def _means(
    model: onnx.ModelProto, layers: Sequence[_Layer], tensors: Sequence[Tensor], threads: int
) -> dict[str, NDArray[np.float64]]:
    """The mean of each channel of the layers' outputs over the tensors, by the output's name."""
    axis = {layer.output: layer.axis for layer in layers}
    probe = Probe(model, list(axis), threads=threads)
    sums: dict[str, NDArray[np.float64]] = {}
    for tensor in tensors:
        for name, value in probe(tensor):
            sums[name] = sums.get(name, 0.0) + _channel_mean(value, axis[name]) / len(tensors)
    return sums


def _channel_mean(value: Array, axis: int) -> NDArray[np.float64]:
    others = tuple(a for a in range(value.ndim) if a != axis % value.ndim)
    return np.asarray(np.mean(value, axis=others, dtype=np.float64))


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """``values`` as it adds to a tensor of ``rank`` dimensions, one for each place on ``axis``."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
