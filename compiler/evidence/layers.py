"""What became of each layer: the precision that was asked for, the one that the runtime built, the error that it cost.

A layer is a node of the fp32 graph that computes floats, named as the user's model names it. In the graph that is
shipped it is found by its node's name: whoever quantizes keeps names, and folds an activation into the layer before,
whose value is then the activation's.

*Asked* is read from the shipped graph: Q/DQ pairs around a node, or its float type. *Real* is read from OpenVINO's
runtime model (compiler/evidence/layers_openvino.py), or from what ONNX Runtime dumps after its optimizer: an integer
kernel stands where a Q/DQ group was replaced, a float kernel behind a `DequantizeLinear` where it was not. The dump's
own value types are stale; only what its nodes say is believed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.evaluation.compare import module_path
from compiler.evidence.evidence import Layer
from compiler.evidence.layers_openvino import real_on_openvino
from compiler.graph.onnxfile import Probe, float_values
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.parity import Noise

Array = NDArray[np.generic]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# These move values or bring them: what they hold is as precise as what they are given.
MOVES = frozenset(
    {"Cast", "Constant", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"Tile", "Transpose", "Unsqueeze"}
)
_INTEGER_KERNEL = re.compile(r"QLinear|QGemm|QAttention|QOrdered|ConvInteger|MatMulInteger|DynamicQuantize\w*MatMul")
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
# What the quantizer and ONNX Runtime's optimizer hang on the name of a node or value that they rewrite.
_QUANTIZED = ("", "_quant", "_MatMul_quant")
_REWRITTEN = re.compile(r"^InsertedPrecisionFreeCast_|(_token_\d+|_nchwc|_nhwc|/\w+Fusion/?|_MatMul_quant|_quant)+$")
GROUP_BYTES = 256 << 20  # of inner values that are held at once, over both graphs


@dataclass(frozen=True)
class Twin:
    """A layer of the fp32 graph and what stands for it in the shipped one.

    Attributes:
        name: its module's path in the user's code.
        value, found: the value of the fp32 graph, and the one in the shipped graph to hold against it (behind its
            Q/DQ pair); None where the two have none in common.
    """

    name: str
    node: onnx.NodeProto
    shipped: onnx.NodeProto
    value: str | None
    found: str | None


def describe(
    original: onnx.ModelProto,
    shipped: onnx.ModelProto,
    tensors: Sequence[Array],
    *,
    exported: onnx.ModelProto | None = None,
    real: Mapping[str, str] | None = None,
    group_bytes: int = GROUP_BYTES,
) -> list[Layer]:
    """Every layer of ``shipped``, in the graph's order.

    Args:
        original: the fp32 graph that it was made of.
        tensors: inputs to measure the error on, pooled; none leaves ``sqnr_db`` null.
        exported: the graph as torch's exporter wrote it, which alone says the modules' paths; ``original`` if None.
        real: what the runtime made of it (`real_here`); None leaves ``real`` null.
    """
    twins = find_twins(original, shipped, exported)
    pairs = {t.value: t.found for t in twins if t.value is not None and t.found is not None}
    errors = sqnr(original, shipped, pairs, tensors, group_bytes) if tensors else {}
    asked = requested(shipped)
    real = real or {}
    return [
        Layer(
            name=twin.name,
            kind=twin.node.op_type,
            requested=asked[twin.shipped.output[0]],
            real=real.get(twin.shipped.output[0]),
            sqnr_db=errors.get(twin.value) if twin.value is not None else None,
        )
        for twin in twins
    ]


def unkept(layers: Iterable[Layer]) -> list[Layer]:
    """The layers that run in another precision than was asked for."""
    return [layer for layer in layers if layer.real is not None and layer.real != layer.requested]


def find_twins(
    original: onnx.ModelProto, shipped: onnx.ModelProto, exported: onnx.ModelProto | None = None
) -> list[Twin]:
    """The layers of ``original`` that ``shipped`` still has as nodes of their own, in the graph's order."""
    floats = set(float_values(original))
    paths = {v: module_path(n, v) for n in (exported or original).graph.node for v in n.output}
    by_name = {node.name: node for node in shipped.graph.node if node.name}
    by_value = {value: node for node in shipped.graph.node for value in node.output}
    behind = behind_pairs(shipped)
    twins = []
    for node in original.graph.node:
        if node.op_type in MOVES or node.output[0] not in floats:
            continue
        name = next((node.name + s for s in _QUANTIZED if node.name and node.name + s in by_name), None)
        twin = by_name[name] if name else None if node.name else by_value.get(node.output[0])
        if twin is not None:
            value = next((v for v in [*node.output, *twin.output] if v in by_value and v in floats), None)
            path = paths.get(node.output[0], node.output[0])
            twins.append(Twin(path, node, twin, value, behind.get(value, value) if value else None))
    return twins


def behind_pairs(model: onnx.ModelProto) -> dict[str, str]:
    """The value behind its Q/DQ pair, by the name of the value before it."""
    stored = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    restored = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {value: restored[held] for value, held in stored.items() if held in restored}


# --- the error -----------------------------------------------------------------------------------------------------


def sqnr(
    original: onnx.ModelProto,
    shipped: onnx.ModelProto,
    pairs: Mapping[str, str],
    tensors: Sequence[Array],
    group_bytes: int = GROUP_BYTES,
) -> dict[str, float]:
    """SQNR in dB of each value of ``original`` against its pair in ``shipped``, pooled over ``tensors``.

    Both graphs run node by node as they stand. Values are held in groups of at most ``group_bytes``, each by a run of
    its own: memory is bounded, whatever the net.
    """
    noise = {value: Noise() for value in pairs}
    for group in groups(original, list(pairs), group_bytes // 2):
        wanted = Probe(original, group, threads=1, literal=True)
        found = Probe(shipped, [pairs[value] for value in group], threads=1, literal=True)
        kinds = [_input_type(original), _input_type(shipped)]
        for tensor in tensors:
            ours, theirs = wanted(tensor.astype(kinds[0])), found(tensor.astype(kinds[1]))
            for (value, reference), (_, candidate) in zip(ours, theirs, strict=True):
                noise[value].add(reference, candidate)
    return {value: pooled.db() for value, pooled in noise.items()}


def groups(model: onnx.ModelProto, values: Sequence[str], most: int = GROUP_BYTES // 2) -> Iterator[list[str]]:
    """``values`` in runs that hold at most ``most`` bytes of floats; a larger value is alone."""
    sizes = value_sizes(model)
    group: list[str] = []
    held = 0
    for value in values:
        if group and held + sizes.get(value, 0) > most:
            yield group
            group, held = [], 0
        group.append(value)
        held += sizes.get(value, 0)
    if group:
        yield group


def value_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of each value as floats."""
    return {name: 4 * int(np.prod(shape, dtype=np.int64)) for name, shape in value_shapes(model).items()}


def value_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of each value; an unknown dimension counts as 1."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        v.name: tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim)
        for v in [*inferred.graph.value_info, *inferred.graph.output]
    }


def _input_type(model: onnx.ModelProto) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type))


# --- the precision that was asked for ------------------------------------------------------------------------------


def requested(model: onnx.ModelProto) -> dict[str, str]:
    """The precision that the graph asks for, by each node's first output: Q/DQ around it, or its float type."""
    inferred = onnx.shape_inference.infer_shapes(model)
    makers = {value: node for node in model.graph.node for value in node.output}
    readers = {value: node for node in reversed(model.graph.node) for value in node.input}
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    kinds |= {t.name: t.data_type for t in model.graph.initializer}

    def asks(node: onnx.NodeProto) -> str:
        if _INTEGER_KERNEL.search(node.op_type):
            return "int8"
        reads = list(node.input[:2]) if node.op_type in WEIGHTED else [v for v in node.input if _is_float(kinds, v)]
        stored = [_comes_from(makers, value) == "DequantizeLinear" for value in reads]
        if stored and all(stored) and (node.op_type in WEIGHTED or _goes_to_grid(readers, node)):
            return "int8"
        return next((_TYPES[kinds[v]] for v in [*node.output, *node.input] if _is_float(kinds, v)), "fp32")

    return {node.output[0]: asks(node) for node in model.graph.node}


def _is_float(kinds: Mapping[str, int], value: str) -> bool:
    return kinds.get(value) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _comes_from(makers: Mapping[str, onnx.NodeProto], value: str) -> str:
    """The kind of the node that computes ``value``, seen through nodes that only move it."""
    while (node := makers.get(value)) is not None and node.op_type in MOVES and node.input:
        value = node.input[0]
    return node.op_type if node is not None else ""


def _goes_to_grid(readers: Mapping[str, onnx.NodeProto], node: onnx.NodeProto) -> bool:
    reader = readers.get(node.output[0])
    while reader is not None and reader.op_type in MOVES:
        reader = readers.get(reader.output[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


# --- the precision that is real ------------------------------------------------------------------------------------


def real_here(path: Path, backend: str) -> dict[str, str]:
    """The precision that a backend computes each node in on this machine, by the node's first output."""
    if backend == "openvino":
        return real_on_openvino(path)
    return real_precisions(onnx.load(path), built_by_onnxruntime(path))


def built_by_onnxruntime(model: Path) -> onnx.ModelProto:
    """What ONNX Runtime makes of ``model`` on this machine's CPU, after all of its optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "built.onnx"
        options = session_options(threads=1)
        options.optimized_model_filepath = str(dump)
        ort.InferenceSession(model, options, providers=[PROVIDER])
        return onnx.load(dump)


def real_precisions(model: onnx.ModelProto, built: onnx.ModelProto) -> dict[str, str]:
    """The precision of the kernel that computes each node of ``model``, by the node's first output.

    A node without a kernel of its own was fused: it is in the next kernel downstream. What is nowhere is left out.
    """
    kinds = _precisions(built)
    by_name, by_value = _kernels(built)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)

    def kernel(node: onnx.NodeProto) -> onnx.NodeProto | None:
        if found := by_name.get(_core(node.name)):
            return found
        front, seen = [*node.output], set(node.output)
        while front:
            value = front.pop(0)
            if value in by_value:
                return by_value[value]
            further = [out for reader in readers.get(value, ()) for out in reader.output if out not in seen]
            seen.update(further)
            front += further
        return None

    found = {node.output[0]: kernel(node) for node in model.graph.node}
    return {value: kinds[node.output[0]] for value, node in found.items() if node and node.output[0] in kinds}


def _kernels(built: onnx.ModelProto) -> tuple[dict[str, onnx.NodeProto], dict[str, onnx.NodeProto]]:
    """The kernels that compute, by the node's and by the value's name before the optimizer rewrote them."""
    computing = [n for n in built.graph.node if n.op_type not in {*MOVES, "ReorderInput", "ReorderOutput"}]
    computing = [n for n in computing if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    by_name = {_core(node.name): node for node in computing if node.name}
    values = [(_core(value), node) for node in computing for value in [node.name, *node.output] if value]
    return by_name, dict(reversed(values))


def _core(name: str) -> str:
    """A name without what the optimizer hung on it."""
    return _REWRITTEN.sub("", _REWRITTEN.sub("", name))


def _precisions(built: onnx.ModelProto) -> dict[str, str]:
    """The precision that each kernel computes in, by the name of its first output."""
    types = {t.name: t.data_type for t in built.graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in built.graph.input}
    found = {}
    for node in built.graph.node:
        reads = [types[value] for value in node.input if value in types]
        first = types.get(node.input[0]) if node.input else None
        integer = _INTEGER_KERNEL.search(node.op_type) is not None
        kind = TensorProto.INT8 if integer else first if first in _TYPES else next((t for t in reads if t in _TYPES), 0)
        if kind in _TYPES:
            found[node.output[0]] = _TYPES[kind]
        types |= dict.fromkeys(node.output, _type_made(node, reads, kind))
    return found


def _type_made(node: onnx.NodeProto, reads: Sequence[int], kind: int) -> int:
    """The type of what a kernel gives."""
    if node.op_type == "Cast":
        return int(next(a.i for a in node.attribute if a.name == "to"))
    if node.op_type == "DequantizeLinear":
        return next((t for t in reads if t in (TensorProto.FLOAT, TensorProto.FLOAT16)), TensorProto.FLOAT)
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return TensorProto.UINT8
    if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"):
        return TensorProto.FLOAT
    return kind
