"""Putting a foreign graph into the shape that the later tools expect, without changing what it computes.

Everything here is about where things stand: constants become initializers, initializers are no inputs, what does
nothing is left out, names are plain. All of it in place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from skerry.errors import CompileError, FormatError

from .foreign_read import nodes_of, subgraphs, title

MAX_ELEMENTS = 1 << 28  # of one tensor that is unpacked or folded: a billion bytes as floats
_PLAIN = re.compile(r"[^A-Za-z0-9_.]+")

Array = NDArray[np.generic]


def tidy(graph: GraphProto) -> None:
    """Brings constants, identities and inputs in order; to be repeated when nodes came in from a subgraph."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(numpy_helper.from_array(dense(sparse), sparse.values.name))
    graph.ClearField("sparse_initializer")
    _constants_to_initializers(graph)
    held = {tensor.name for tensor in graph.initializer}
    keep([value for value in graph.input if value.name not in held], graph.input)
    _bypass(graph)
    drop_unused(graph)


def keep(items: list[NodeProto] | list[TensorProto] | list[object], field: object) -> None:
    """Replaces a repeated field's items."""
    del field[:]  # type: ignore[attr-defined]
    field.extend(items)  # type: ignore[attr-defined]


def has_nan(tensor: TensorProto) -> bool:
    """Whether a constant holds what is no number; infinity is one, which masks are made of."""
    array = numpy_helper.to_array(tensor)
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def dense(sparse: SparseTensorProto) -> Array:
    """A sparse tensor, written out. Raises `FormatError` if its indices do not lie in its shape."""
    shape = tuple(sparse.dims)
    if min(shape, default=1) < 0 or int(np.prod(shape, dtype=object)) > MAX_ELEMENTS:
        raise CompileError(f"sparse tensor {sparse.values.name!r} {list(shape)} is too large to be written out")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    out = np.zeros(shape, values.dtype)
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        out.reshape(-1)[flat] = values
    except (ValueError, IndexError) as exc:
        raise FormatError(
            f"sparse tensor {sparse.values.name!r} has an index outside of its shape {list(shape)}"
        ) from exc
    return out


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1:
            graph.initializer.append(_constant(node.attribute[0], node.output[0]))
        else:
            kept.append(node)
    keep(kept, graph.node)


def _constant(attribute: AttributeProto, name: str) -> TensorProto:
    """What a Constant node says, as a named tensor."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
        return tensor
    if isinstance(value, SparseTensorProto):
        return numpy_helper.from_array(dense(value), name)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if attribute.name not in kinds:
        raise CompileError(f"Constant {name!r} holds text; Skerry compiles graphs of numbers")
    return numpy_helper.from_array(np.array(value, kinds[attribute.name]), name)


def _bypass(graph: GraphProto) -> None:
    """Leaves out identities; one that makes a graph's output must stay."""
    shown = {value.name for value in graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in shown:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    keep(kept, graph.node)
    rename_inputs(graph.node, alias)


def rest(graph: GraphProto) -> None:
    """Makes dropout what it is when nothing trains: an identity. Whoever asks for its mask keeps it."""
    used = used_names(graph)
    for node in graph.node:
        if node.op_type == "Dropout" and not used.intersection(node.output[1:]):
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], node.name))


def rename_inputs(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Renames what nodes, and the graphs inside them, read; a name that such a graph gives anew is another one."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for inner in subgraphs(node):
            own = {tensor.name for tensor in inner.initializer} | {value.name for value in inner.input}
            own |= {name for deeper in inner.node for name in deeper.output}
            outer = {before: after for before, after in names.items() if before not in own}
            rename_inputs(inner.node, outer)
            for value in inner.output:
                value.name = outer.get(value.name, value.name)


def rename_value(graph: GraphProto, before: str, after: str) -> None:
    """Renames a value where it is made and where nodes read it; the graph holds no others."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name == before:
                    field[index] = after


def used_names(graph: GraphProto) -> set[str]:
    """What some node reads or the graph gives out."""
    used = {name for node in nodes_of(graph) for name in node.input}
    used |= {value.name for node in nodes_of(graph) for inner in subgraphs(node) for value in inner.output}
    return used | {value.name for value in graph.output}


def drop_unused(graph: GraphProto) -> None:
    """Leaves out nodes and initializers that no output hangs on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for inner in subgraphs(node):
                needed |= used_names(inner)
    keep(kept[::-1], graph.node)
    keep([tensor for tensor in graph.initializer if tensor.name in needed], graph.initializer)


def name_safely(graph: GraphProto, fixed: Mapping[str, str]) -> dict[str, str]:
    """Gives every value and node a name of letters, digits, '_' and '.'; ``fixed`` says what some are to be called.

    Returns:
        What each value that was renamed is called now. The graph has no subgraphs any more.
    """
    values = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    values += [name for node in graph.node for name in node.output if name]
    names = plain_names(values, fixed)
    for node in graph.node:
        for field in (node.input, node.output):
            keep([names.get(name, name) for name in field], field)
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    titles = [node.name or f"{node.op_type}_{index}" for index, node in enumerate(graph.node)]
    taken: set[str] = set()
    for node, given in zip(graph.node, titles, strict=True):
        node.name = _unique(_plain(given), taken)
    return names


def plain_names(values: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """A plain name for each of ``values``, no two alike, the same every time."""
    names, taken = dict(fixed), set(fixed.values())
    for value in values:
        if value not in names:
            names[value] = _unique(_plain(value), taken)
    return names


def _plain(name: str) -> str:
    """Slashes and colons become dots, accents go; what has no letter left is called "value"."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return _PLAIN.sub(".", ascii_only).strip(".") or "value"


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def refused(node: NodeProto, opset: int, constants: Mapping[str, TensorProto], used: set[str]) -> str | None:
    """Why a node cannot be compiled, whatever it computes; None if it can."""
    if "Quantize" in node.op_type or node.op_type in _QUANTIZED:
        why = "shows that the graph is quantized already; give the fp32 model, Skerry quantizes it"
    elif node.op_type in ("BatchNormalization", "Dropout") and _trains(node, opset, constants, used):
        why = "is in training mode; call model.eval() before you export"
    elif node.op_type in _REFUSED:
        why = _REFUSED[node.op_type]
    elif any(True for _ in subgraphs(node)):
        why = "holds a graph of its own, which is not compiled yet"
    else:
        return None
    return f"{title(node)} {why}"


_RANDOM = "gives other values at each run, and no proof could hold it to anything; export the model without it"
_LOOP = "is a loop, which is not compiled yet; export the model with its loops unrolled"
_REFUSED = {
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "Multinomial": _RANDOM,
    "Bernoulli": _RANDOM,
    "Loop": _LOOP,
    "Scan": _LOOP,
    "If": "decides by what it sees, so no measurement would speak of both ways; export one of them",
}
_QUANTIZED = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def _trains(node: NodeProto, opset: int, constants: Mapping[str, TensorProto], used: set[str]) -> bool:
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if opset < 7:
        return not said.get("is_test", 0)
    if node.op_type == "BatchNormalization":
        return bool(said.get("training_mode", 0)) or any(name in used for name in node.output[1:])
    if len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(numpy_helper.to_array(mode).any())
