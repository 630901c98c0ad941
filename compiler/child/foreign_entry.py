"""What goes into a foreign graph and what comes out of it: read off its signature, which may leave sizes open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto, TensorProto, ValueInfoProto

from skerry.errors import CompileError, UsageError

_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
}
_TAKEN: dict[int, str] = {**_FLOATS, TensorProto.UINT8: "uint8"}
_GIVEN: dict[int, str] = {**_FLOATS, TensorProto.INT64: "int64", TensorProto.UINT8: "uint8", TensorProto.INT32: "int32"}

ONE_IMAGE = "expected one image: export the model with everything else as a constant in it"

# An axis: its size, the name of an open one, or nothing known about it.
Dims = list[int | str | None]


@dataclass(frozen=True)
class Value:
    """An input or output. ``dims`` is None where not even the number of axes is known."""

    name: str
    dtype: str
    dims: Dims | None


def entry(model: ModelProto, name: str) -> Value:
    """The one image input: initializers that are listed as inputs are none.

    Raises:
        CompileError: there are other inputs, or it is of a type that no frame can be turned into.
    """
    held = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        found = ", ".join(value.name for value in inputs[:6]) or "none"
        raise CompileError(f"{name} takes {len(inputs)} inputs ({found}); {ONE_IMAGE}")
    return _value(inputs[0], _TAKEN, name)


def exits(model: ModelProto, name: str) -> list[Value]:
    """The outputs, in order."""
    found = [_value(value, _GIVEN, name) for value in model.graph.output]
    if not found:
        raise CompileError(f"{name} gives no output")
    return found


def bind(value: Value, wanted: Sequence[int] | None, name: str) -> list[int]:
    """The input's size at batch 1: as the graph says it, where it leaves an axis open as ``wanted`` says it.

    Raises:
        UsageError: the two contradict each other, or an axis is open and nobody says how long it is.
        CompileError: the graph is made for another batch than 1.
    """
    if value.dims is None and wanted is None:
        raise UsageError(f"{name} does not say the size of {value.name!r}; give it: --input 1x3x224x224")
    dims: Dims = [None] * len(wanted or []) if value.dims is None else list(value.dims)
    if len(dims) != 4:
        raise CompileError(f"{name}: input {value.name!r} is {words(dims)}; expected one image, 1xCxHxW or 1xHxWxC")
    if isinstance(dims[0], int) and dims[0] != 1:
        raise CompileError(
            f"{name} is made for a batch of {dims[0]}; export it with batch 1, or with a batch that may vary"
        )
    dims[0] = 1
    if wanted is not None:
        if len(wanted) != 4 or any(isinstance(d, int) and d != w for d, w in zip(dims, wanted, strict=True)):
            raise UsageError(f"{name} takes {words(dims)}; the size asked for is {words(list(wanted))}")
        return list(wanted)
    sizes = [d for d in dims if isinstance(d, int)]
    if len(sizes) != 4:
        raise UsageError(
            f"{name} leaves the size of {value.name!r} open: {words(dims)}; say it with --input, for example "
            f"--input {'x'.join(str(d) if isinstance(d, int) else '224' for d in dims)}, or in the recipe"
        )
    return sizes


def _value(info: ValueInfoProto, types: dict[int, str], name: str) -> Value:
    if not info.type.HasField("tensor_type"):
        kind = (info.type.WhichOneof("value") or "nothing").removesuffix("_type")
        raise CompileError(
            f"{name}: {info.name!r} is a {kind}; expected a tensor: export a model that takes and gives tensors alone"
        )
    tensor = info.type.tensor_type
    if tensor.elem_type not in types:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise CompileError(
            f"{name}: {info.name!r} is {kind}; expected {', '.join(types.values())}: cast it inside the model"
        )
    dims = [_dim(d) for d in tensor.shape.dim] if tensor.HasField("shape") else None
    return Value(info.name, types[tensor.elem_type], dims)


def _dim(dim: object) -> int | str | None:
    size, symbol = getattr(dim, "dim_value", 0), getattr(dim, "dim_param", "")
    return size if size > 0 else symbol or None  # 0 and -1 are how some exporters say "any"


def words(dims: Sequence[int | str | None]) -> str:
    """A size as messages show it: 1x3x?x?."""
    return "x".join(str(d) if isinstance(d, int) else "?" for d in dims) or "a scalar"
