"""Making a foreign ONNX graph one of ours: the passes in order, and the proof that nothing changed.

`adopt` either returns a graph in the form that the later passes start from (one fp32 or uint8 image of a fixed size,
opset 20, plain names, no control flow, weights in initializers), which on ONNX Runtime gives what the original file
gives there with all optimization off; or it raises a `SkerryError` that names the node and the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from skerry.errors import CompileError, SkerryError
from skerry.execution.onnxrt import BATCH

from . import foreign_floats, foreign_fold, foreign_opset, foreign_rows, foreign_tidy
from .foreign_entry import entry
from .foreign_read import opset, reason, title
from .foreign_run import Original, Run, Wish, noise, set_dims

Array = NDArray[np.generic]

_BAKED_IN = "somewhere it holds the batch in a constant; leave it at batch 1, or export it again with an open batch"


@dataclass(frozen=True)
class Adopted:
    """A graph of ours.

    Attributes:
        origin: what its values were called in the original, by their names now.
        opset: the original's.
        rows: the axis along which each output is filled up whose number of rows varies.
    """

    model: ModelProto
    origin: dict[str, str]
    opset: int
    rows: dict[str, int] = field(default_factory=dict)

    def run(self) -> Run:
        return Run(self.model, entry(self.model, "the adopted graph"))


def adopt(path: Path, wish: Wish) -> tuple[Original, Adopted]:
    """Raises `FormatError` for what is no valid file, `CompileError` for what cannot be compiled."""
    with _saying(path.name, "cannot be read"):
        original = Original(path, wish)
    with _saying(path.name, f"does not run on ONNX Runtime as it is (opset {opset(original.model)})"):
        original.run()(noise(original.entry.dtype, original.shape)[0])
    with _saying(path.name, "cannot be compiled"):
        adopted = _transform(original, wish)
        _prove(original, adopted, wish)
        onnx.checker.check_model(adopted.model, full_check=True)
    return original, adopted


@contextlib.contextmanager
def _saying(name: str, what: str) -> Iterator[None]:
    """Turns whatever foreign libraries raise on foreign bytes into a refusal that says what could not be done."""
    try:
        yield
    except SkerryError as exc:
        raise exc if str(exc).startswith(name) else type(exc)(f"{name}: {exc}") from exc
    except Exception as exc:
        raise CompileError(f"{name} {what}: {reason(exc)}") from exc


def _transform(original: Original, wish: Wish) -> Adopted:
    model = ModelProto()
    model.CopyFrom(original.model)
    name, graph = original.name, model.graph
    graph.ClearField("value_info")
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    foreign_tidy.tidy(graph)
    set_dims(graph.input[0], original.shape if wish.batch is None else _open_batch(original, wish.batch))
    foreign_fold.fold(model)
    _refuse(model, name)
    foreign_tidy.rest(graph)
    version = opset(model)
    model = foreign_opset.to_target(model, name)
    foreign_floats.to_fp32(model)
    foreign_floats.widen_integers(model.graph)
    foreign_fold.fold(model)
    rows = foreign_rows.fix_rows(model, wish.rows, name)
    ends = dict(zip([e.name for e in original.exits], original.names, strict=True))
    names = foreign_tidy.name_safely(model.graph, {original.entry.name: wish.input, **ends})
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    made = {value for node in model.graph.node for value in node.output}
    origin = {now: before for before, now in names.items() if now in made}
    return Adopted(model, origin, version, {ends[output]: axis for output, axis in rows.items()})


def _open_batch(original: Original, batch: tuple[int, int]) -> list[int | str]:
    dims = original.entry.dims
    if dims is not None and isinstance(dims[0], int):
        raise CompileError(
            f"{original.name} is made for a batch of {dims[0]}, asked for are {batch[0]} to {batch[1]}; export it with "
            "a batch that may vary"
        )
    return [BATCH, *original.shape[1:]]


def _refuse(model: ModelProto, name: str) -> None:
    constants = {t.name: t for t in model.graph.initializer}
    used = foreign_tidy.used_names(model.graph)
    for node in model.graph.node:
        if why := foreign_tidy.refused(node, opset(model), constants, used):
            raise CompileError(f"{name}: {why}")
    made = {value for node in model.graph.node for value in node.output}
    if still := [value.name for value in model.graph.output if value.name not in made]:
        raise CompileError(f"{name}: output {still[0]!r} is the image itself, or a constant; leave it out")
    if broken := [tensor.name for tensor in constants.values() if foreign_tidy.has_nan(tensor)]:
        raise CompileError(f"{name}: {broken[0]!r} holds NaN; its training or its export went wrong")


def _prove(original: Original, adopted: Adopted, wish: Wish) -> None:
    """Runs both on noise, at every batch that is promised, and writes down what sizes the outputs have."""
    low, high = wish.batch or (1, 1)
    ours = adopted.run()
    for batch in sorted({1, low, min(low + 1, high), high}):
        theirs, sizes = original.run(batch=batch), set()
        for image in noise(original.entry.dtype, [batch, *original.shape[1:]]):
            with _batched(original.name, batch):
                wanted, found = original.ours(theirs(image), adopted.rows), ours(image)
            if any(original.differs(wanted[name], found[name]) for name in original.names):
                raise CompileError(_difference(original, adopted, image))
            sizes.add(tuple((name, found[name].shape) for name in original.names))
        if any(wish.batch and shape[:1] != (batch,) for _, shape in next(iter(sizes))):
            raise CompileError(
                f"{original.name} does not give one row of outputs for each of {batch} images: {_BAKED_IN}"
            )
        if len(sizes) > 1 or any(0 in shape for _, shape in next(iter(sizes))):
            raise CompileError(f"{original.name}: the size of its outputs depends on what is in the image, or is zero")
        for value in adopted.model.graph.output:
            shape = dict(next(iter(sizes)))[value.name]
            set_dims(value, [BATCH, *shape[1:]] if wish.batch else shape)


@contextlib.contextmanager
def _batched(name: str, batch: int) -> Iterator[None]:
    """Says of a run that breaks off with several images what it is about."""
    try:
        yield
    except Exception as exc:
        if batch == 1:
            raise
        raise CompileError(f"{name} does not run with {batch} images at once ({reason(exc)}): {_BAKED_IN}") from exc


def _difference(original: Original, adopted: Adopted, image: Array) -> str:
    """In words: the first value that both graphs have and that differs."""
    said = (
        f"{original.name}: in opset {foreign_opset.TARGET} it computes something else than in its own {adopted.opset}"
    )
    hint = f"export it with opset {foreign_opset.TARGET}"
    there = {value for node in original.model.graph.node for value in node.output}
    pairs = {now: before for now, before in adopted.origin.items() if before in there}
    model = ModelProto()
    model.CopyFrom(adopted.model)
    shown = {value.name for value in [*model.graph.output, *original.model.graph.output]}
    model.graph.output.extend(helper.make_empty_tensor_value_info(now) for now in pairs if now not in shown)
    wanted = original.run(batch=len(image), extra=[b for b in pairs.values() if b not in shown])(image)
    found = Run(model, entry(model, original.name))(image)
    for node in model.graph.node:
        for now in [value for value in node.output if value in found and pairs.get(value) in wanted]:
            if original.differs(wanted[pairs[now]], found[now]):
                return f"{said}, first at {title(node)}; {hint}"
    return f"{said}; {hint}"
