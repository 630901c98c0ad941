"""The two TensorRT there are, one API: the classic one (10.3 to 11.x) and TensorRT for RTX."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from skerry.errors import CompileError

# Backend: the modules that may bring it, the distributions that may have been installed, and what to install.
_MODULES = {
    "tensorrt": (
        ("tensorrt",),
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "the TensorRT of this device's JetPack",
    ),
    "tensorrt-rtx": (
        ("tensorrt_rtx_bindings", "tensorrt_rtx"),
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
        "pip install 'skerry[tensorrt-rtx]'",
    ),
}


def load(backend: str) -> Any:
    """Imports a backend's module; only where it runs, since it can take the process down.

    Raises:
        CompileError: it is not installed, or its libraries do not load.
    """
    reason: ImportError | OSError | None = None
    for name in _MODULES[backend][0]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as exc:
            reason = reason or exc
    raise CompileError(f"{backend} does not load here ({reason}); it needs {_MODULES[backend][2]}")


def require(backend: str) -> str:
    """The installed version of what must build here. Raises `CompileError` at once, not after minutes of work."""
    found = version(backend)
    if found is None:
        raise CompileError(f"{backend} builds the engine here and is not installed; it needs {_MODULES[backend][2]}")
    return found


def version(backend: str) -> str | None:
    """The installed version, without importing it; None if there is none that Python's metadata tells."""
    for name in _MODULES[backend][1]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
