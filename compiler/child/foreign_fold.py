"""Folding what does not depend on the image: shapes, the weights' own arithmetic, and Ifs whose condition is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from skerry.execution.onnxrt import PROVIDER, session_options

from .foreign_read import nodes_of, opset, subgraphs
from .foreign_tidy import MAX_ELEMENTS, drop_unused, keep, rename_inputs, tidy

_ROUNDS = 64
# Never folded: an Identity is left only where it makes a graph's output, the others are looked at by name.
_KEPT = {"Identity", "Dropout", "If", "Loop", "Scan"}
_KEPT |= {"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_SMALL = 1 << 20  # elements that are worth a place of their own, wherever they come from

Shape = tuple[int, ...]


def fold(model: ModelProto) -> None:
    """Folds in place until nothing changes. Inputs must have their sizes."""
    for _ in range(_ROUNDS):
        tidy(model.graph)
        shapes = known_shapes(model)
        if not (_fold_shapes(model.graph, shapes) | _fold_constants(model, shapes) | _choose_branches(model.graph)):
            break
    tidy(model.graph)


def known_shapes(model: ModelProto) -> dict[str, Shape]:
    """The sizes of all values that can be told without running the graph."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found.setdefault(value.name, tuple(d.dim_value for d in tensor.shape.dim))
    return found


def _fold_shapes(graph: GraphProto, shapes: dict[str, Shape]) -> bool:
    """Shape and Size of values whose size is known."""
    kept = []
    for node in graph.node:
        shape = shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") and node.input else None
        if shape is None:
            kept.append(node)
            continue
        said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        part = np.array(shape[said.get("start", 0) : said.get("end")], np.int64)
        value = part if node.op_type == "Shape" else np.array(np.prod(shape, dtype=np.int64))
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    changed = len(kept) != len(graph.node)
    keep(kept, graph.node)
    return changed


def _fold_constants(model: ModelProto, shapes: dict[str, Shape]) -> bool:
    """Runs every node whose inputs are all constants, once and for all, on ONNX Runtime."""
    graph = model.graph
    known = {t.name for t in graph.initializer} | {""}
    chosen, kept = [], []
    for node in graph.node:
        if _is_constant(node, known, shapes):
            chosen.append(node)
            known.update(node.output)
        else:
            kept.append(node)
    if not chosen:
        return False
    made = {name for node in chosen for name in node.output if name}
    wanted = sorted(made & (_read_by(kept) | {value.name for value in graph.output}))
    values = _run(model, chosen, wanted)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in zip(wanted, values, strict=True))
    keep(kept, graph.node)
    return True


def _is_constant(node: NodeProto, known: set[str], shapes: dict[str, Shape]) -> bool:
    if (
        node.op_type in _KEPT
        or not node.input
        or not known.issuperset(node.input)
        or any(True for _ in subgraphs(node))
    ):
        return False
    sizes = [shapes.get(name) for name in node.output if name]
    if any(size is None for size in sizes):
        return False
    grown = sum(int(np.prod(size, dtype=object)) for size in sizes if size is not None)
    held = sum(int(np.prod(shapes.get(name, ()), dtype=object)) for name in node.input if name)
    return grown <= min(MAX_ELEMENTS, max(2 * held, _SMALL))


def _read_by(nodes: Iterable[NodeProto]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for inner in subgraphs(node):
            found |= {name for deeper in nodes_of(inner) for name in deeper.input} | {v.name for v in inner.output}
    return found


def _run(model: ModelProto, nodes: list[NodeProto], wanted: list[str]) -> list[object]:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "constants",
        [],
        [helper.make_empty_tensor_value_info(name) for name in wanted],
        [t for t in model.graph.initializer if t.name in used],
    )
    part = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset(model))], ir_version=10)
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(part.SerializeToString(), options, providers=[PROVIDER])
    return list(session.run(wanted, {}))


def _choose_branches(graph: GraphProto) -> bool:
    """Writes out the branch that is taken of each If whose condition is a constant."""
    constants = {t.name: t for t in graph.initializer}
    chosen = [node for node in graph.node if node.op_type == "If" and node.input[0] in constants]
    if not chosen:
        return False
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "If" and node.input[0] in constants:
            taken = bool(numpy_helper.to_array(constants[node.input[0]]).all())
            nodes += _branch(graph, node, "then_branch" if taken else "else_branch")
        else:
            nodes.append(node)
    keep(nodes, graph.node)
    drop_unused(graph)
    return True


def _branch(graph: GraphProto, node: NodeProto, which: str) -> list[NodeProto]:
    """The nodes of one branch, under names that nothing else has; its initializers go to ``graph``."""
    branch = next(a.g for a in node.attribute if a.name == which)
    tidy_names = {t.name for t in branch.initializer} | {out for inner in branch.node for out in inner.output if out}
    names = {name: f"{node.output[0]}.{which}.{name}" for name in tidy_names}
    rename_inputs(branch.node, names)
    for inner in branch.node:
        keep([names.get(name, name) for name in inner.output], inner.output)
    for tensor in branch.initializer:
        renamed = TensorProto()
        renamed.CopyFrom(tensor)
        renamed.name = names[tensor.name]
        graph.initializer.append(renamed)
    ends = [
        helper.make_node("Identity", [names.get(inside.name, inside.name)], [outside])
        for inside, outside in zip(branch.output, node.output, strict=True)
    ]
    return [*branch.node, *ends]
