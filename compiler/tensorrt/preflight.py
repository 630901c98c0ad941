"""What TensorRT will not do, said before anything is built: for a target, and for a graph. Pure.

A rule is a function that yields sentences: what was asked, what there is, what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from compiler.graph.view import Graph, name_of
from compiler.targets.target import OLDEST, Gpu, System, Target, VariantPlan
from skerry.errors import CompileError, UsageError
from skerry.manifest import Requires, numbers

BUILT = ("fp32", "fp16", "int8")  # precisions that this compiler writes
RTX_SMS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # TensorRT for RTX 1.7, trt.ComputeCapability
_NO_FP32_PRODUCTS = ("7.5",)  # seen with 1.7.1: "SM75 does not support fp32 GEMM"
_OPSETS = range(9, 21)  # what TensorRT 10.3's parser reads (onnx-tensorrt 10.3, docs/operators.md)
_DLA_GAP = ("11.0", "11.4.1")  # no DLA in between (TensorRT 11.4.1, Jetson migration page)
_WORKSPACE_SHARE = 0.5  # of the least memory of the family: the CPU lives in it too

# By operator: what onnx-tensorrt's docs/operators.md does not have and what to do instead.
_UNKNOWN_OPERATORS = {
    "DynamicQuantizeLinear": "quantize statically: scales must be constants",
    "ConvInteger": "quantize with explicit Q/DQ",
    "MatMulInteger": "quantize with explicit Q/DQ",
    "QLinearConv": "write Q/DQ pairs (QDQ format) instead of quantized operators",
    "QLinearMatMul": "write Q/DQ pairs (QDQ format) instead of quantized operators",
    "StringNormalizer": "do it before the model",
    "TfIdfVectorizer": "do it before the model",
    "Optional": "return the value itself",
    "SequenceConstruct": "use tensors instead of sequences",
    "SplitToSequence": "use Split instead of a sequence",
}
# Plugins that TensorRT 11.0 took out, or that 10.12 said would go (TensorRT's CHANGELOG).
_GONE = ("batchtile", "clip_trt", "coordconvac", "cropandresize", "nms", "normalize", "proposal", "specialslice")


def check_target(name: str, target: Target, *, tensorrt: str | None = None) -> None:
    """Raises `UsageError` with every refusal, if there is one.

    Args:
        tensorrt: the version that is to build, if it is known; else whatever the target's systems come with.
    """
    if found := refusals(name, target, tensorrt=tensorrt):
        raise UsageError("; ".join(found))


def check_model(model: onnx.ModelProto, plan: VariantPlan, requires: Requires) -> None:
    """Raises `CompileError` with every refusal of what is to be built, if there is one."""
    if found := model_refusals(model, plan, requires):
        raise CompileError(
            f"{plan.id}: " + "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if found[3:] else "")
        )


def refusals(name: str, target: Target, *, tensorrt: str | None = None) -> list[str]:
    """Why the target cannot have what its variants ask for, each a sentence."""
    name = name.partition("@")[0]  # its systems are said with each
    plans = [plan for plan in target.variant if plan.backend.startswith("tensorrt")]
    if not plans:
        return []
    if target.gpu is None or not target.system:
        return [f"{name}: its TensorRT variants need a [gpu] and a [[system]] that say what it is"]
    found = [*_systems(name, target, tensorrt), *_dla(name, target, target.gpu, plans, tensorrt)]
    for plan in plans:
        found.extend(_plan(name, target.gpu, plan))
    return [*found, *_workspace(name, target, target.gpu)]


def _plan(name: str, gpu: Gpu, plan: VariantPlan) -> Iterator[str]:
    if plan.precision not in gpu.precisions.value:
        has = ", ".join(gpu.precisions.value)
        yield (
            f"{name}: {plan.id} asks for {plan.precision}, SM {gpu.sm.value} has {has} ({gpu.precisions.source}); "
            "use one of these"
        )
    elif plan.precision not in BUILT:
        yield f"{name}: {plan.id} asks for {plan.precision}, this compiler writes {', '.join(BUILT)}; use int8 or fp16"
    if plan.precision == "int8" and plan.layout != "explicit":
        yield f'{name}: {plan.id} has layout {plan.layout!r}, TensorRT takes explicit Q/DQ; set layout = "explicit"'
    if plan.backend == "tensorrt-rtx" and gpu.sm.value not in RTX_SMS:
        yield (
            f"{name}: {plan.id} is for TensorRT for RTX, which builds for SM {', '.join(RTX_SMS)} and not for "
            f'{gpu.sm.value}; a Jetson has classic TensorRT: backend = "tensorrt"'
        )


def _systems(name: str, target: Target, tensorrt: str | None) -> Iterator[str]:
    classic = any(plan.backend == "tensorrt" for plan in target.variant)
    able = [s.name for s in target.system if numbers(s.below) > numbers(OLDEST)]
    for system in target.system:
        if classic and numbers(system.below) <= numbers(OLDEST):
            yield (
                f"{name}@{system.name} has TensorRT {system.tensorrt} ({system.source}), a strongly typed graph needs "
                f"{OLDEST}; "
                f"{f'use {name}@' + able[0] if able else 'flash a newer JetPack (6.1 or later)'}"
            )
        elif tensorrt and not _within(tensorrt, system):
            yield (
                f"{name}@{system.name} runs TensorRT from {system.tensorrt} to below {system.below}, not {tensorrt} "
                f"({system.source}); build with a TensorRT of that range, on the device itself"
            )


def _within(version: str, system: System) -> bool:
    least = numbers(system.tensorrt)
    return least <= numbers(version)[: max(3, len(least))] < numbers(system.below)


def _dla(name: str, target: Target, gpu: Gpu, plans: Sequence[VariantPlan], tensorrt: str | None) -> Iterator[str]:
    core = target.build.dla_core
    if core is None:
        return
    cores = gpu.dla.value if gpu.dla else 0
    if core >= cores:
        what = f"has {cores or 'no'} DLA" + (f" ({gpu.dla.source})" if gpu.dla else "")
        yield f"{name}: dla_core = {core} is asked for, {name} {what}; leave dla_core out to run on the GPU"
        return
    for version in [tensorrt] if tensorrt else [s.tensorrt for s in target.system]:
        if numbers(_DLA_GAP[0]) <= numbers(version) < numbers(_DLA_GAP[1]):
            yield f"{name}: TensorRT {version} has no DLA, 11.4.1 has it again; leave dla_core out"
        for plan in plans:
            if plan.precision == "fp32":
                yield f"{name}: {plan.id} asks for fp32, a DLA has fp16 and int8; use fp16"
            if plan.precision == "int8" and numbers(version) < numbers(_DLA_GAP[1]):
                yield (
                    f"{name}: {plan.id} is explicit Q/DQ, which a DLA takes from TensorRT 11.4.1 on, not {version}; "
                    "use fp16 on it, or int8 on the GPU"
                )


def _workspace(name: str, target: Target, gpu: Gpu) -> Iterator[str]:
    least = min(gpu.memory_gib.value) * 1024 if gpu.memory_gib else None
    if least and target.build.workspace_mib > least * _WORKSPACE_SHARE:
        yield (
            f"{name}: workspace_mib = {target.build.workspace_mib}, the smallest has {least} MiB that its CPU shares; "
            f"use at most {int(least * _WORKSPACE_SHARE)}"
        )


# --- the graph --------------------------------------------------------------------------------------------------------


def model_refusals(model: onnx.ModelProto, plan: VariantPlan, requires: Requires) -> list[str]:
    """Why TensorRT would not build ``model``, or would build something else than ``plan`` says."""
    graph = Graph(model)
    found = [*_opset(model), *(why for node in _all_nodes(model.graph) for why in _operator(node))]
    for node in graph.nodes:
        found.extend(_pair(graph, node))
    found.extend(_precision(graph, plan))
    found.extend(_fp32_products(graph, plan, requires))
    return [*found, *_dynamic(model, plan)]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in [item.g, *item.graphs] if item.HasField("g") or item.graphs else []:
                yield from _all_nodes(inner)


def _opset(model: onnx.ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in _OPSETS:
            yield f"opset {opset.version}, TensorRT {OLDEST} reads {_OPSETS[0]} to {_OPSETS[-1]}; export at opset 20"


def _operator(node: onnx.NodeProto) -> Iterator[str]:
    kind = node.op_type
    if kind.lower().startswith(_GONE) or "NMS" in kind:  # NonMaxSuppression is neither
        yield f"{name_of(node)} is {kind}, a plugin that TensorRT 11 does not have; use ONNX's NonMaxSuppression"
    elif node.domain not in ("", "ai.onnx"):
        yield f"{name_of(node)} is {node.domain}.{kind}, not an operator of ONNX; export it as ONNX's own operators"
    elif kind in _UNKNOWN_OPERATORS:
        yield f"{name_of(node)} is {kind}, which TensorRT's parser does not have; {_UNKNOWN_OPERATORS[kind]}"


def _pair(graph: Graph, node: onnx.NodeProto) -> Iterator[str]:
    """Quantization as ONNX Runtime writes it by default, which TensorRT refuses."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    name, zero = name_of(node), graph.constant(node.input[2]) if len(node.input) > 2 else None
    cure = 'lay it out for TensorRT (layout = "explicit")'
    if node.op_type == "DequantizeLinear" and graph.types.get(node.input[0]) == TensorProto.INT32:
        yield f"{name} dequantizes int32: a quantized bias, which TensorRT refuses; {cure}"
        return
    if graph.constant(node.input[1]) is None:
        yield f"{name} has a scale that is computed, TensorRT wants constants; {cure}"
    if zero is not None and np.any(zero):
        yield f"{name} has zero point {zero.reshape(-1)[0]}, TensorRT's grids are symmetric; {cure}"
    elif zero is None or zero.dtype != np.int8:
        yield f"{name} is {'uint8' if zero is None else zero.dtype}, TensorRT wants int8; {cure}"


def _precision(graph: Graph, plan: VariantPlan) -> Iterator[str]:
    """TensorRT builds what the graph says: without half precision in it, "fp16" is fp32 and nobody hears of it."""
    kinds = {node.op_type for node in graph.nodes}
    if plan.precision == "int8" and "DequantizeLinear" not in kinds:
        yield "int8 is asked for and the graph has no Q/DQ pair: fp32 would be built; lay it out first"
    if plan.precision == "fp16" and TensorProto.FLOAT16 not in graph.types.values():
        yield "fp16 is asked for and the graph has no fp16 value: fp32 would be built; convert it first"


def _fp32_products(graph: Graph, plan: VariantPlan, requires: Requires) -> Iterator[str]:
    refusing = [a.sm for a in requires.accelerators or [] if a.sm in _NO_FP32_PRODUCTS]
    if plan.backend != "tensorrt-rtx" or not refusing:
        return
    for node in graph.nodes:
        if node.op_type in ("Gemm", "MatMul") and _computes_in_fp32(graph, node):
            yield (
                f"{name_of(node)} is a {node.op_type} in fp32, which TensorRT for RTX refuses on SM {refusing[0]}; "
                "give it fp16"
            )


def _computes_in_fp32(graph: Graph, node: onnx.NodeProto) -> bool:
    makers = [graph.producer.get(value) for value in node.input[:2]]
    pairs = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
    return not pairs and graph.types.get(node.output[0]) == TensorProto.FLOAT


def _dynamic(model: onnx.ModelProto, plan: VariantPlan) -> Iterator[str]:
    if plan.build is None or plan.build.dla_core is None:
        return
    for entry in model.graph.input:
        if not all(dim.HasField("dim_value") for dim in entry.type.tensor_type.shape.dim):
            yield f"input {entry.name} has a dynamic shape, a DLA takes fixed ones; compile for one batch size"
