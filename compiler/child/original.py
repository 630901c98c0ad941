"""The jobs of a source that is an ONNX file: its reference is that file, on ONNX Runtime. Imports no torch.

The file is anybody's: memory and time are limited, and a library that dies of it takes this process along, not the
parent.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from . import serving
from .adopt import Adopted, adopt
from .foreign_entry import entry
from .foreign_run import Original, Run, Wish
from .reference import reference_job
from .timing import runs_of, take_turns

NAME = "original ONNX"
_MEMORY_BYTES = 16 << 30
_ADOPT_S = 600

Array = NDArray[np.generic]


class Worker:
    """A foreign graph, once `load` has adopted it, and the jobs that use it."""

    def __init__(self, root: Path, progress: Callable[[str], None]) -> None:
        self._root, self._progress = root, progress
        self._original: Original
        self._adopted: Adopted
        self._reference: Run

    def load(
        self,
        *,
        path: str,
        shape: list[int],
        input_name: str,
        outputs: list[str],
        rows: int | None,
        batch: list[int] | None,
    ) -> dict[str, Any]:
        """Reads and adopts the graph. Returns its outputs' shapes and types, and what was done to it."""
        wish = Wish(shape, input_name, outputs, rows, (batch[0], batch[1]) if batch else None)
        with limited():
            self._original, self._adopted = adopt(Path(path), wish)
            self._reference = self._original.run()
            dtype = entry(self._adopted.model, path).dtype
            found = self._run(np.zeros(shape, dtype))
        return {
            "outputs": {name: list(value.shape) for name, value in found.items()},
            "types": {name: str(value.dtype) for name, value in found.items()},
            "input_type": dtype,
            "parameters": sum(int(np.prod(t.dims)) for t in self._adopted.model.graph.initializer),
            "opset": self._adopted.opset,
        }

    def reference(self, **request: Any) -> dict[str, Any]:
        """The original file, with all optimization off, on the report frames."""
        return reference_job(self._root, self._run, self._progress, request)

    def export(self, *, out: str, **_graph: Any) -> dict[str, Any]:
        """Writes the adopted graph."""
        onnx.save(self._adopted.model, out)
        return {"opset": self._adopted.opset, "ir": int(self._adopted.model.ir_version)}

    def layers(self, *, tensor: str, names: list[str], out: str, **_graph: Any) -> dict[str, Any]:
        """The original's inner values on "input/0" of a file, under the names that they have in the adopted graph."""
        there = {value for node in self._original.model.graph.node for value in node.output}
        inner = {now: self._adopted.origin[now] for now in names if self._adopted.origin.get(now) in there}
        given = {value.name for value in self._original.exits}
        run = self._original.run(extra=[before for before in inner.values() if before not in given])
        values = run(load_file(tensor)["input/0"])
        floats = {now: values[before] for now, before in inner.items() if values[before].dtype.kind == "f"}
        save_file({now: np.ascontiguousarray(array, np.float32) for now, array in floats.items()}, out)
        return {}

    def measure(
        self,
        *,
        shape: list[int],
        models: dict[str, str],
        seconds: float,
        backends: dict[str, str] | None = None,
        **_graph: Any,
    ) -> dict[str, Any]:
        """Times the original, optimized as ONNX Runtime does by itself, and other files; one thread, in turn."""
        original = self._original.run(optimized=True)
        image = np.zeros(shape, entry(self._adopted.model, self._original.name).dtype)
        runs: dict[str, Callable[[], object]] = {NAME: lambda: original(image)}
        runs.update(runs_of(models, backends or {}))
        return take_turns(runs, seconds, self._progress)

    def _run(self, image: Array) -> dict[str, Array]:
        return self._original.ours(self._reference(image), self._adopted.rows)


@contextlib.contextmanager
def limited(seconds: int = _ADOPT_S) -> Iterator[None]:
    """Ends the process when it takes too long: nothing gentler gets through to a library that hangs."""
    # The last words of a process that ends here, for its epitaph.
    print(f"reading a foreign graph, with limits of {seconds} s and {_MEMORY_BYTES >> 30} GiB", flush=True)  # noqa: T201
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def serve(root: str, answers: int) -> None:
    """Answers jobs on a foreign graph."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    serving.serve(answers, lambda progress: Worker(Path(root), progress))
