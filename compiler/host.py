"""The parent's end of the child process, in which alone the user's code and torch run.

Requests and answers are JSON lines, data goes through files; nothing is ever unpickled. The child is started when the
first pass needs it, so that a resumed compilation whose passes are all done never imports torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from compiler.sources.recipe import Source
from skerry.errors import CompileError, UserCodeError
from skerry.manifest import Detection

_REFERENCES = {"worker": "torch", "original": "original ONNX"}
_SCRIPT = Path(__file__).parent / "child" / "__main__.py"
_TAIL = 4000  # characters of the child's own output that an error may quote


class Host:
    """A lazily started child that has loaded one model. Use as a context manager: leaving it ends the child.

    Args:
        root: the user's folder, first in the child's search path.
        model: the arguments of the child's ``load`` job, which always runs first.
        worker: which module of compiler/child does the jobs: "worker" is torch's, "original" an ONNX file's.
    """

    def __init__(
        self, root: Path, model: dict[str, Any], on_progress: Callable[[str], None], worker: str = "worker"
    ) -> None:
        self._root, self._model, self._on_progress, self._worker = root, model, on_progress, worker
        self._loaded: dict[str, Any] = {}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: Any = None

    @property
    def reference(self) -> str:
        """What everything is held to, in words."""
        return _REFERENCES[self._worker]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            if self._process.stdin:
                with contextlib.suppress(BrokenPipeError):  # what a child that died did not read
                    self._process.stdin.close()
        self._said.close()

    def load(self) -> dict[str, Any]:
        """What the child found when it loaded the model; starts the child if need be. Raises as `call` does."""
        if self._process is None:
            process = self._start()
            self._loaded = self._ask(process, "load", self._model)
        return self._loaded

    def call(self, job: str, **arguments: object) -> dict[str, Any]:
        """Runs one job on the loaded model and returns its facts.

        Raises:
            UserCodeError: the user's code raised; the message is its own last line and where it was raised.
            CompileError: torch could not do it, or the child died.
        """
        self.load()
        assert self._process is not None  # noqa: S101 - load started it
        return self._ask(self._process, job, arguments)

    def _ask(self, process: subprocess.Popen[bytes], job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None  # noqa: S101 - Popen was given a pipe
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode({"job": job, **arguments}) + b"\n")
            process.stdin.flush()
            while line := self._answers.readline():
                answer = msgspec.json.decode(line, type=dict[str, Any])
                if "progress" in answer:
                    self._on_progress(answer["progress"])
                elif "error" in answer:
                    raise (UserCodeError if answer["whose"] == "user" else CompileError)(answer["error"])
                else:
                    return answer
        raise CompileError(f"the process that runs your model ended in {job!r} ({self._epitaph(process)})")

    def _start(self) -> subprocess.Popen[bytes]:
        read, write = os.pipe()
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(_SCRIPT), str(self._root.resolve()), str(write), self._worker, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        os.close(write)
        self._answers = os.fdopen(read, "rb")
        return self._process

    def _epitaph(self, process: subprocess.Popen[bytes]) -> str:
        code = process.wait()
        self._said.seek(0)
        tail = self._said.read()[-_TAIL:].decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = f"signal {-code}, {signal_name(-code)}" if code < 0 else f"exit code {code}"
        return f"{reason}; it said: {tail[0]}" if tail else reason


def signal_name(number: int) -> str:
    """What a process died of, in words."""
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    return f"{name}, as when memory runs out" if number == signal.SIGKILL else name


def open_host(source: Source, on_progress: Callable[[str], None]) -> Host:
    """The child that suits a source: an ONNX file is its own reference, and no torch is imported for it."""
    recipe, post = source.recipe, source.recipe.postprocess
    model: dict[str, Any] = {"shape": recipe.input.shape, "outputs": recipe.model.outputs}
    if recipe.model.onnx is not None:
        rows = post.max_boxes if isinstance(post, Detection) else None
        model |= {"path": str(source.file), "input_name": recipe.input.name, "rows": rows, "batch": recipe.input.batch}
        return Host(source.root, model, on_progress, "original")
    weights = str(source.weights) if source.weights else None
    model |= {"build": recipe.model.build, "weights": weights, "pt2": str(source.file) if source.file else None}
    return Host(source.root, model, on_progress)
