"""What was really built, from the engine inspector's own JSON, beside what was asked for. Pure.

TensorRT's two spellings are read alike: 10 says ``Bindings`` and, per tensor, ``Format/Datatype``; 11 says
``I/O Tensors``, with ``DataType`` and ``Format`` apart. Layers are found by the ONNX nodes that they name: in
``Metadata`` ("[ONNX Layer: conv1]"), or in their own name ("conv1 + relu1").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import onnx

from compiler.evidence.evidence import Layer
from compiler.graph.view import name_of
from compiler.tensorrt import layout
from skerry.errors import CompileError

_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_RANK = {"int8": 0, "fp8": 0, "fp16": 1, "bf16": 1, "fp32": 2}
# In this order: "BFloat16" holds "float16", which holds "float".
_WORDS = (("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("half", "fp16"))
_WIDE = (("float16", "fp16"), ("tf32", "fp32"), ("fp32", "fp32"), ("float", "fp32"))
# They move or convert values; what they were made for is another layer's matter.
_CARRIERS = {"Reformat", "Constant", "NoOp", "Shuffle", "Quantize", "Dequantize", "Cast", "Signal", "Wait", "Slice"}


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """An engine beside its request.

    Attributes:
        layers: the weighted nodes of the graph, each with what was asked and what is there.
        reformats: layers that only change a type or a memory layout: what a precision costs besides.
        tensors: what goes in and out by name, each with its type where the engine tells.
    """

    layers: list[Layer]
    reformats: int
    tensors: dict[str, str]

    def wrong(self) -> list[Layer]:
        """The layers that are wider than was asked for."""
        return [layer for layer in self.layers if layer.real and _RANK[layer.real] > _RANK[layer.requested]]

    def check(self) -> None:
        """Raises `CompileError` if a layer is wider than was asked for, or if no layer could be looked at."""
        if self.layers and not any(layer.real for layer in self.layers):
            raise CompileError(
                "the engine's description names none of the graph's layers; build it with detailed profiling verbosity"
            )
        if wrong := self.wrong():
            names = ", ".join(f"{x.name} ({x.kind}): {x.requested} asked, {x.real} built" for x in wrong[:3])
            more = f", and {len(wrong) - 3} more" if wrong[3:] else ""
            raise CompileError(
                f"{len(wrong)} of {len(self.layers)} layers are not what was asked for: {names}{more}; "
                "lay the model out for TensorRT again, or keep these layers at what was built"
            )


def asked(model: onnx.ModelProto) -> list[Layer]:
    """The weighted layers of a typed graph with what is asked of each, where no engine could be looked at."""
    kinds = {name_of(node): node.op_type for node in model.graph.node}
    return [Layer(name=name, kind=kinds[name], requested=kind) for name, kind in layout.requested(model).items()]


def inspect(engine: bytes | str, requested: Mapping[str, str], kinds: Mapping[str, str]) -> Inspection:
    """Holds an engine's description to the precisions that the graph asks of its nodes.

    Args:
        engine: JSON of the whole engine, from the inspector.
        requested: precision by node (`compiler.tensorrt.layout.requested`).
        kinds: ONNX operator by node.

    Raises:
        CompileError: the JSON is none, or tells names alone.
    """
    found = _parse(engine)
    by_node = _by_node(found["Layers"], requested)
    layers = [
        Layer(name=name, kind=kinds.get(name, ""), requested=asked, real=_real(by_node.get(name, []), asked))
        for name, asked in requested.items()
    ]
    reformats = sum(layer.get("LayerType") == "Reformat" for layer in found["Layers"])
    return Inspection(layers=layers, reformats=reformats, tensors=dict(_tensors(found)))


def _parse(engine: bytes | str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(engine, type=dict[str, Any])
        layers = found["Layers"]
    except (msgspec.DecodeError, KeyError, TypeError) as exc:
        raise CompileError(f"this is no engine inspector's JSON: {exc}") from exc
    if any(not isinstance(layer, dict) for layer in layers):
        raise CompileError("the inspector tells names alone; build the engine with detailed profiling verbosity")
    return found


def _by_node(layers: list[dict[str, Any]], wanted: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    by_node: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        if layer.get("LayerType") not in _CARRIERS:
            for name in dict.fromkeys(_nodes(layer)):
                if name in wanted:
                    by_node.setdefault(name, []).append(layer)
    return by_node


def _nodes(layer: Mapping[str, Any]) -> Iterator[str]:
    """The names of the ONNX nodes that a layer says it stands for."""
    named = _ONNX.findall(str(layer.get("Metadata", "")))
    if named:
        yield from (name.strip() for name in named)
        return
    text = str(layer.get("Name", ""))
    yield from (part.strip() for part in re.split(r"\s\+\s|\|\|", text))
    yield from (name.strip() for name in _ONNX.findall(text))


def _real(layers: list[dict[str, Any]], asked: str) -> str | None:
    """In what a node is computed: the widest of the layers that stand for it, since one of them is the slow one.

    int8 is told by what a layer reads (its result may be wider on purpose), the rest by what it makes.
    """
    found = [kind for layer in layers if (kind := _computes(layer, asked))]
    return max(found, key=_RANK.__getitem__) if found else None


def _computes(layer: Mapping[str, Any], asked: str) -> str | None:
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and (kind := precision(str(weights.get("Type", "")))):
        return kind
    tensors = layer.get("Inputs" if asked == "int8" else "Outputs") or []
    kinds = [kind for tensor in tensors[:1] if (kind := _type(tensor))]
    return kinds[0] if kinds else None


def _type(tensor: Any) -> str | None:
    if not isinstance(tensor, Mapping):
        return None
    for key in ("DataType", "Datatype", "Format/Datatype", "Format"):
        if kind := precision(str(tensor.get(key, ""))):
            return kind
    return None


def precision(text: str) -> str | None:
    """fp32, fp16, bf16, fp8 or int8, from TensorRT's words for it; None if it is none of them."""
    words = text.lower()
    return next((kind for word, kind in (*_WORDS, *_WIDE) if word in words), None)


def _tensors(engine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of inputs and outputs, with their types where the engine tells."""
    for item in engine.get("I/O Tensors", engine.get("Bindings", [])):
        if isinstance(item, Mapping):
            yield str(item.get("Name", "")), str(item.get("DataType", ""))
        else:
            yield str(item), ""
