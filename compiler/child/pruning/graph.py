"""The net as a graph of aten operators, and the small questions that one asks about a node."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

Shape = tuple[int, ...]


def capture(model: torch.nn.Module, example: torch.Tensor, *, dynamic_batch: bool = False) -> fx.GraphModule:
    """The net as a graph that computes the same: parameters keep their names, numbers that the code computed are in it.

    Args:
        dynamic_batch: leaves the first dimension of the input open; ``example`` needs a batch of two or more then.

    Raises:
        Exception: whatever torch's exporter raises.
    """
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic_batch else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)  # noqa: S101 - what torch.export makes
    _inline(module)
    for part in module.modules():
        part.training = False  # it was taken in evaluation, whatever a new module says of itself
    return module


def _inline(module: fx.GraphModule) -> None:
    """Puts the bodies of autocast and no-grad blocks in their place: in float32 inference they compute the same."""
    for node in list(module.graph.nodes):
        body = _body(module, node)
        if body is None:
            continue
        inner, values = body
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        known: dict[fx.Node, Any] = dict(zip(places, values, strict=True))
        with module.graph.inserting_before(node):
            result = module.graph.graph_copy(inner.graph, known)
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code(lambda n: n.op in {"placeholder", "output"} or _writes(n))
    module.recompile()


def _body(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, Sequence[Any]] | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):  # noqa: SLF001
        return None
    for place, argument in enumerate(node.args):
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            inner = attribute(module, str(argument.target))
            if isinstance(inner, fx.GraphModule):
                return inner, node.args[place + 1 :]
    return None


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable  # noqa: SLF001


def attribute(module: torch.nn.Module, name: str) -> Any:
    """What ``module.a.b.c`` is, for "a.b.c"."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def operator(node: fx.Node) -> str:
    """The operator's plain name: "relu" for aten.relu_.default."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return target._schema.name.split("::")[-1].rstrip("_")  # noqa: SLF001
    return getattr(target, "__name__", str(target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by the names in the operator's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        return {str(index): value for index, value in enumerate(node.args)}
    found: dict[str, Any] = {}
    for index, entry in enumerate(node.target._schema.arguments):  # noqa: SLF001
        if index < len(node.args):
            found[entry.name] = node.args[index]
        else:
            found[entry.name] = node.kwargs.get(entry.name, entry.default_value)
    return found


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replaces one argument of a call, by its name in the schema."""
    schema = node.target._schema  # type: ignore[union-attr]  # noqa: SLF001
    for index, entry in enumerate(schema.arguments):
        if entry.name != name:
            continue
        if index < len(node.args):
            node.update_arg(index, value)
        else:
            node.update_kwarg(name, value)
        return
    raise KeyError(name)


def shape(value: object) -> Shape:
    """The shape of a tensor node, with the example's batch for what is left open."""
    meta = value.meta.get("val") if isinstance(value, fx.Node) else None
    return tuple(_plain(size) for size in meta.shape) if isinstance(meta, torch.Tensor) else ()


def is_tensor(value: object) -> bool:
    """Whether a node's value is one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


def _plain(size: int | torch.SymInt) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def tensors_of(value: object) -> list[torch.Tensor]:
    """What a model returns, as a list: one tensor, several, or several by name."""
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]
