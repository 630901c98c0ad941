"""Opening an ONNX file that anybody may have made: limits first, then ONNX's own checker.

A file is parsed, never run, here. What it keeps outside itself is read from plain files below its own folder, and from
nowhere else. What comes back holds all of its tensors, has passed the checker, and uses ONNX's own operators alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner

from skerry.errors import CompileError, FormatError

MAX_BYTES = (2 << 30) - (1 << 20)  # protobuf's own limit, with room for the graph
MAX_NODES = 200_000
_LOCAL = ("", "ai.onnx")
_RUNTIME = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Exception during initialization: |/onnxruntime_src/\S+ |"
    r"Non-zero status code returned while |onnxruntime::\S+\(.*?\) "
)
# Below this an element has no whole byte of its own, and only ONNX knows how it is packed.
_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}


def read(path: Path) -> ModelProto:
    """The model in ``path``, complete and checked.

    Raises:
        FormatError: it is no valid ONNX file; the message says what is wrong where.
        CompileError: it is one, but of a kind that Skerry does not compile.
    """
    model = parse(path)
    _load_external(model, path)
    _call_the_domain_by_one_name(model)
    if not model.graph.node:
        raise FormatError(f"{path.name} has no nodes: it is not a model")
    _refuse_foreign_operators(model, path.name)
    if opset(model) > (newest := onnx.defs.onnx_opset_version()):
        raise CompileError(f"{path.name} is of opset {opset(model)}; the newest that is known here is {newest}")
    _check(model, path.name)
    return _inlined(model, path.name)


def _call_the_domain_by_one_name(model: ModelProto) -> None:
    """ONNX's own domain has two names, which the specification calls equal and the checker does not."""
    for item in [*model.opset_import, *nodes_of(model.graph), *(n for f in model.functions for n in f.node)]:
        if item.domain == "ai.onnx":
            item.domain = ""


def _check(model: ModelProto, name: str) -> None:
    """ONNX's own checker, but for one thing: that an input or output has no shape at all is left to shape inference."""
    values = [v for graph in _graphs(model) for v in [*graph.input, *graph.output] if v.type.HasField("tensor_type")]
    shapeless = [value.type.tensor_type for value in values if not value.type.tensor_type.HasField("shape")]
    for tensor in shapeless:
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as exc:  # the checker and protobuf raise a dozen kinds on bytes that mean nothing
        raise FormatError(f"{name} is not a valid ONNX file: {reason(exc)}") from exc
    for tensor in shapeless:
        tensor.ClearField("shape")


def parse(path: Path) -> ModelProto:
    """The graph of ``path`` as it stands, without its external data."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FormatError(
            f"{path.name} has {size / 1e9:.1f} GB; one ONNX file holds at most {MAX_BYTES / 1e9:.1f}: keep its weights "
            "in a file beside it (external data)"
        )
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as exc:
        raise FormatError(f"{path.name} is not an ONNX file: {reason(exc)}") from exc
    if not model.HasField("graph") or not model.opset_import:
        raise FormatError(f"{path.name} is not an ONNX file: it has no graph, or does not say of which opset it is")
    return model


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_of(inner)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds: an If's branches, a Loop's body."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that the model is written in."""
    return next((entry.version for entry in model.opset_import if entry.domain in _LOCAL), 0)


def external_files(model: ModelProto) -> list[str]:
    """The files beside the model that hold some of its tensors, sorted."""
    return sorted({_external(t)[0] for t in _tensors(model) if t.data_location == TensorProto.EXTERNAL})


def reason(exc: BaseException) -> str:
    """What a library found wrong, in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return _RUNTIME.sub("", lines[0] if lines else type(exc).__name__)[:300]


def title(node: NodeProto) -> str:
    """A node as a message names it."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} {name!r}"


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield graph
        for node in graph.node:
            graphs += subgraphs(node)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def _attribute_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _external(tensor: TensorProto) -> tuple[str, int, int | None]:
    """File, offset and length of a tensor that is kept outside."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        length = int(entries["length"]) if "length" in entries else None
        where = entries["location"], int(entries.get("offset", "0")), length
    except (KeyError, ValueError) as exc:
        raise FormatError(f"tensor {tensor.name!r} does not say where its data lies") from exc
    if where[1] < 0 or (length is not None and length < 0):
        raise FormatError(f"tensor {tensor.name!r} lies before the beginning of its file")
    return where


def _load_external(model: ModelProto, path: Path) -> None:
    total = path.stat().st_size
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location, offset, length = _external(tensor)
        data = _read_beside(path, location, offset, _bytes_wanted(tensor, length))
        total += len(data)
        if total > MAX_BYTES:
            raise CompileError(f"{path.name} and its data have more than {MAX_BYTES / 1e9:.1f} GB: too large")
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _bytes_wanted(tensor: TensorProto, length: int | None) -> int:
    """How many bytes the tensor's shape asks for. Raises `FormatError` if its entry says otherwise."""
    if tensor.data_type in _PACKED and length is not None:
        return length
    try:
        wanted = int(np.prod(tensor.dims, dtype=object)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except Exception as exc:
        raise FormatError(f"tensor {tensor.name!r} has no type that can lie in a file") from exc
    if wanted < 0 or (length is not None and length != wanted):
        raise FormatError(f"tensor {tensor.name!r} {list(tensor.dims)} needs {wanted} bytes, its entry says {length}")
    return wanted


def beside(path: Path, location: str) -> Path:
    """The file that ``path`` keeps weights in. Raises `FormatError` if it is not a plain file below its folder."""
    folder = path.resolve().parent
    plain = location and "\\" not in location and "\0" not in location and ".." not in Path(location).parts
    target = (folder / location).resolve() if plain else folder
    if not plain or not target.is_relative_to(folder):
        raise FormatError(f"{path.name} wants to read {location!r}, which is not below its own folder: refused")
    if not target.is_file():
        raise FormatError(f"{path.name} keeps weights in {location!r}, which is not beside it; bring the file along")
    return target


def _read_beside(path: Path, location: str, offset: int, size: int) -> bytes:
    target = beside(path, location)
    if offset + size > target.stat().st_size:
        raise FormatError(f"{location} is too short: {path.name} wants {size} bytes at {offset}; it may be cut off")
    with target.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _refuse_foreign_operators(model: ModelProto, name: str) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    count = 0
    for nodes in [nodes_of(model.graph), *(function.node for function in model.functions)]:
        for node in nodes:
            count += 1
            if node.domain not in _LOCAL and (node.domain, node.op_type) not in local:
                raise CompileError(
                    f"{name}: {title(node)} is of the domain {node.domain!r}; Skerry compiles ONNX's own operators, "
                    "which every runtime has: export the model without it"
                )
    if count > MAX_NODES:
        raise CompileError(f"{name} has {count} nodes, more than the {MAX_NODES} that Skerry takes")


def _inlined(model: ModelProto, name: str) -> ModelProto:
    """The model with its own functions written out where they are called."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception as exc:
        raise CompileError(f"{name}: its functions cannot be written out: {reason(exc)}") from exc
