"""What runs a model: a small protocol, and a table of import strings.

A backend is imported only where it is used, so that a device needs only its own. Laws of every backend:

- it owns its input buffers; pre-processing writes into them;
- `Backend.run` returns views that are valid until the next run;
- `Backend.facts` says what really loaded, and a silent fall-back is an error;
- one thread owns one instance.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from skerry.errors import BackendError
from skerry.manifest import Manifest, Tensor, Variant

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class BackendFacts:
    """What really loaded."""

    backend: str
    provider: str
    version: str
    threads: int


class Backend(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> Tensors: ...

    def run(self) -> Tensors: ...

    def facts(self) -> BackendFacts: ...

    def close(self) -> None: ...


class MakeBackend(Protocol):
    """How a backend is made: its class."""

    def __call__(self, model: Path, *, threads: int) -> Backend:
        """Loads ``model``. Raises `BackendError`, and nothing else."""


BACKENDS = {
    "onnxrt": "skerry.execution.onnxrt:OnnxrtBackend",
    "openvino": "skerry.execution.openvino:OpenvinoBackend",
}


def backend_class(name: str) -> MakeBackend:
    """Imports a backend by name. Raises `BackendError` if it is unknown or its library is not installed."""
    try:
        module, attribute = BACKENDS[name].split(":")
    except KeyError:
        raise BackendError(f"unknown backend {name!r}; this Skerry has {', '.join(BACKENDS)}: update Skerry") from None
    try:
        return cast("MakeBackend", getattr(importlib.import_module(module), attribute))
    except ImportError as exc:
        raise BackendError(f"backend {name} needs a library that is not here: {exc}; see `skerry doctor`") from exc


def load_variant(root: Path, manifest: Manifest, variant: Variant, *, threads: int) -> Backend:
    """Loads a variant of the release in ``root``, and holds it to the tensors that the manifest promises.

    Raises:
        BackendError: it does not load here, or has other inputs or outputs than the manifest says.
    """
    backend = backend_class(variant.backend)(root / variant.model, threads=threads)
    try:
        inputs, outputs = manifest.tensors(variant.graph)
        _hold_to(variant.id, "inputs", inputs, backend.inputs)
        _hold_to(variant.id, "outputs", outputs, backend.run())
    except BackendError:
        backend.close()
        raise
    return backend


def _hold_to(variant: str, what: str, promised: Sequence[Tensor], has: Tensors) -> None:
    wanted = {(t.name, t.dtype, tuple(t.shape)) for t in promised}
    found = {(name, str(array.dtype), array.shape) for name, array in has.items()}
    if wanted != found:
        raise BackendError(
            f"{variant}: expected {what} {sorted(wanted)}, the model has {sorted(found)}; compile it again"
        )


def available() -> list[str]:
    """The backends whose library is installed here."""
    found = []
    for name in BACKENDS:
        try:
            backend_class(name)
        except BackendError:
            continue
        found.append(name)
    return found
