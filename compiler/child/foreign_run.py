"""Running a foreign graph as it was found, with all optimization off: the reference of everything that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from skerry.errors import CompileError
from skerry.execution.onnxrt import PROVIDER, session_options

from .foreign_entry import Value, bind, entry, exits
from .foreign_read import nodes_of, read
from .foreign_rows import filled
from .foreign_tidy import plain_names

Array = NDArray[np.generic]
Tensors = dict[str, Array]

# Largest difference over largest value. The kernels are the same on both sides: what is not half precision is equal to
# the last bit unless an operator was raised to something else.
_TOLERANCE = {"float32": 1e-5, "float64": 1e-4, "float16": 3e-2}


@dataclass(frozen=True)
class Wish:
    """How a graph is to be adopted.

    Attributes:
        shape: the input's, batch 1.
        outputs: what the outputs are to be called, in order; as the file calls them (made plain) if there is none.
        rows: how many rows an output has whose number of rows depends on the image.
        batch: the batches, from and to, that the graph is to take; None for 1 alone.
    """

    shape: Sequence[int]
    input: str
    outputs: Sequence[str] = ()
    rows: int | None = None
    batch: tuple[int, int] | None = None


class Run:
    """A session on a graph with one input. ``names`` are its outputs'."""

    def __init__(self, model: ModelProto, value: Value, *, optimized: bool = False) -> None:
        options = session_options(1)
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
        self._input = value.name
        self._kind = {"float16": np.float16, "float64": np.float64, "uint8": np.uint8}.get(value.dtype, np.float32)
        self.names = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: Array) -> Tensors:
        values = self._session.run(None, {self._input: image.astype(self._kind)})
        return {name: np.asarray(value) for name, value in zip(self.names, values, strict=True)}


class Original:
    """A file, read and bound to the size that was asked for.

    Attributes:
        names: what its outputs are called from now on, in order.
        precision: the coarsest float that it computes in.
    """

    def __init__(self, path: Path, wish: Wish) -> None:
        self.name, self.model, self._rows = path.name, read(path), wish.rows
        self.entry, self.exits = entry(self.model, self.name), exits(self.model, self.name)
        self.shape = bind(self.entry, wish.shape, self.name)
        self.precision = _precision(self.model)
        self.names = [*wish.outputs] or [*plain_names([e.name for e in self.exits], {}).values()]
        if len(self.names) != len(self.exits) or len({*self.names}) != len(self.names):
            raise CompileError(
                f"{self.name} gives {len(self.exits)} output(s) ({', '.join(e.name for e in self.exits)}); the recipe "
                f"names {len(self.names)}: {', '.join(self.names)}"
            )

    def run(self, *, optimized: bool = False, batch: int = 1, extra: Sequence[str] = ()) -> Run:
        """The file in a session; ``extra`` are inner values to be given out too."""
        model = ModelProto()
        model.CopyFrom(self.model)
        set_dims(next(v for v in model.graph.input if v.name == self.entry.name), [batch, *self.shape[1:]])
        for value in model.graph.output:  # what the file says of them may hold for another batch alone
            value.type.tensor_type.ClearField("shape")
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in extra)
        return Run(model, self.entry, optimized=optimized)

    def ours(self, outputs: Tensors, rows: dict[str, int]) -> Tensors:
        """Its outputs by our names, in our types; those that vary filled up along their axis."""
        found: Tensors = {}
        for name, value in zip(self.names, self.exits, strict=True):
            array = outputs[value.name]
            integer = {np.dtype(np.int32): np.int64, np.dtype(np.int64): np.int64, np.dtype(np.uint8): np.uint8}
            if name in rows and self._rows is not None:
                array = filled(array, rows[name], self._rows)
            found[name] = np.ascontiguousarray(array.astype(integer.get(array.dtype, np.float32))).reshape(array.shape)
        return found

    def differs(self, wanted: Array, found: Array) -> bool:
        """Whether two values are not the same but for rounding."""
        if wanted.shape != found.shape:
            return True
        if wanted.dtype.kind in "iub":
            return not np.array_equal(wanted, found)
        a, b = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return True
        a, b = np.nan_to_num(a, posinf=0, neginf=0), np.nan_to_num(b, posinf=0, neginf=0)
        limit = _TOLERANCE[self.precision] * max(float(np.abs(a).max(initial=0)), 1e-30)
        return bool(np.abs(a - b).max(initial=0) > limit)


def noise(dtype: str, shape: Sequence[int]) -> list[Array]:
    """Images of noise, in the ranges that nets commonly take: 0 to 1, normalized, 0 to 255."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, shape)
    if dtype == "uint8":
        return [pixels.astype(np.uint8), random.integers(0, 256, shape).astype(np.uint8)]
    return [image.astype(np.float32) for image in (random.random(shape), random.standard_normal(shape), pixels)]


def set_dims(value: ValueInfoProto, dims: Sequence[int | str]) -> None:
    """Writes a size into a signature."""
    kind = value.type.tensor_type.elem_type
    value.type.CopyFrom(helper.make_tensor_type_proto(kind, list(dims)))


def _precision(model: ModelProto) -> str:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]}
    for node in nodes_of(model.graph):
        for attribute in node.attribute:
            kinds |= {attribute.t.data_type} if attribute.HasField("t") else set()
            kinds |= {attribute.i} if attribute.name in ("to", "dtype") else set()
    if kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return "float16"
    return "float64" if TensorProto.DOUBLE in kinds else "float32"
