"""The open inference protocol ("KServe V2"), over HTTP: tensors in, tensors out, as JSON or as bytes behind it. Pure.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; Triton's binary tensor data extension:
a JSON header of ``Inference-Header-Content-Length`` bytes, then each tensor's bytes in order, little-endian, row-major.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from skerry.errors import UsageError
from skerry.manifest import Manifest, Tensor

HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
_TYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT8": np.dtype("i1"),
    "UINT16": np.dtype("<u2"),
    "INT16": np.dtype("<i2"),
    "UINT32": np.dtype("<u4"),
    "INT32": np.dtype("<i4"),
    "UINT64": np.dtype("<u8"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
_NAMES = {kind: name for name, kind in _TYPES.items()}

Array = NDArray[Any]


class _In(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class _Out(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_In]
    outputs: list[_Out] = []
    id: str = ""
    parameters: dict[str, Any] = {}


@dataclass(frozen=True)
class Asked:
    """An inference request.

    Attributes:
        outputs: names that are wanted, each with whether as bytes; empty means all, as ``all_binary`` says.
    """

    id: str
    inputs: dict[str, Array]
    outputs: dict[str, bool]
    all_binary: bool


def parse(body: bytes, header_length: str | None, promised: Sequence[Tensor]) -> Asked:
    """Reads a request.

    Args:
        header_length: the value of `HEADER`; None where the whole body is JSON.
        promised: the inputs that the model takes.

    Raises:
        UsageError: it is not one, or its inputs are not the model's.
    """
    end = _length(header_length, body)
    try:
        request = msgspec.json.decode(body[:end], type=_Request)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise UsageError(f"not an inference request: {exc}") from exc
    rest, inputs = memoryview(body)[end:], {}
    for entry in request.inputs:
        size = entry.parameters.get("binary_data_size")
        if size is None:
            inputs[entry.name] = _from_json(entry)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise UsageError(f"input {entry.name}: binary_data_size {size!r}, but {len(rest)} bytes are left")
        inputs[entry.name], rest = _from_bytes(entry, rest[:size]), rest[size:]
    if len(rest):
        raise UsageError(f"{len(rest)} bytes are left over behind the last input")
    _hold(inputs, promised)
    all_binary = bool(request.parameters.get("binary_data_output", False))
    wanted = {out.name: bool(out.parameters.get("binary_data", all_binary)) for out in request.outputs}
    return Asked(request.id, inputs, wanted, all_binary)


def _length(text: str | None, body: bytes) -> int:
    if text is None:
        return len(body)
    if not text.isdecimal() or int(text) > len(body):
        raise UsageError(f"{HEADER}: {text}, but the body has {len(body)} bytes")
    return int(text)


def _kind(entry: _In) -> np.dtype[Any]:
    if entry.datatype not in _TYPES:
        raise UsageError(f"input {entry.name}: datatype {entry.datatype}; known are {', '.join(_TYPES)}")
    return _TYPES[entry.datatype]


def _from_json(entry: _In) -> Array:
    try:
        found = np.asarray(entry.data, _kind(entry))
        return found.reshape(entry.shape)
    except (TypeError, ValueError, OverflowError) as exc:
        raise UsageError(f"input {entry.name}: its data is not {entry.datatype} of {entry.shape}: {exc}") from exc


def _from_bytes(entry: _In, data: memoryview) -> Array:
    try:
        return np.frombuffer(data, _kind(entry)).reshape(entry.shape)
    except ValueError as exc:
        raise UsageError(f"input {entry.name}: {len(data)} bytes are not {entry.datatype} of {entry.shape}") from exc


def _hold(inputs: Mapping[str, Array], promised: Sequence[Tensor]) -> None:
    wanted = {t.name: (t.dtype, tuple(t.shape)) for t in promised}
    found = {name: (str(value.dtype), value.shape) for name, value in inputs.items()}
    if wanted != found:
        raise UsageError(f"expected inputs {_words(wanted)}; got {_words(found)}")


def _words(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in tensors.items()) or "none"


def respond(asked: Asked, model: str, version: str, outputs: Mapping[str, Array]) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON if bytes follow it.

    Raises:
        UsageError: an output is wanted that the model has not.
    """
    wanted = asked.outputs or dict.fromkeys(outputs, asked.all_binary)
    if missing := [name for name in wanted if name not in outputs]:
        raise UsageError(f"the model has no output {', '.join(missing)}; it has {', '.join(outputs)}")
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in wanted.items():
        value = np.ascontiguousarray(outputs[name])
        kind = _NAMES[value.dtype.newbyteorder("<")]
        entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(value.shape)}
        if binary:
            tail.append(value.tobytes())
            entry["parameters"] = {"binary_data_size": value.nbytes}
        else:
            entry["data"] = value.reshape(-1).tolist()
        entries.append(entry)
    head = {"model_name": model, "model_version": version, "outputs": entries} | ({"id": asked.id} if asked.id else {})
    encoded = msgspec.json.encode(head)
    return encoded + b"".join(tail), len(encoded) if tail else None


def model_metadata(manifest: Manifest, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, Any]:
    """What ``GET v2/models/<name>`` says."""
    return {
        "name": manifest.name,
        "versions": [str(manifest.version)],
        "platform": "skerry",
        "inputs": [_described(t) for t in inputs],
        "outputs": [_described(t) for t in outputs],
    }


def _described(tensor: Tensor) -> dict[str, Any]:
    kind = _NAMES[np.dtype(tensor.dtype).newbyteorder("<")]
    return {"name": tensor.name, "datatype": kind, "shape": list(tensor.shape)}
