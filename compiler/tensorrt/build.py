"""The parent's end of a build: starts the child, hears its progress, and puts words to its death."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from compiler.tensorrt.recipe import Built, Request
from skerry.errors import CompileError

_TAIL = 4000  # characters of the child's own output that an error may quote
_COMMAND = (sys.executable, "-P", "-m", "compiler.tensorrt.builder")  # -P: no `compiler` of the folder we stand in


def build(request: Request, progress: Callable[[str], None], *, command: Sequence[str] = _COMMAND) -> Built:
    """Builds an engine in a process of its own and writes it to ``request.out``.

    Raises:
        CompileError: TensorRT refused (naming node, operator and reason), or its process died.
    """
    with tempfile.TemporaryFile() as said:
        read, write = os.pipe()
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(write)], stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, pass_fds=[write]
        )
        os.close(write)
        try:
            with os.fdopen(read, "rb") as answers:
                _send(process, msgspec.json.encode(request))
                for line in answers:
                    answer = msgspec.json.decode(line, type=dict[str, Any])
                    if "built" in answer:
                        return msgspec.convert(answer["built"], Built)
                    if "error" in answer:
                        raise CompileError(answer["error"])
                    progress(answer["progress"])
            raise CompileError(f"{request.backend} took its process down ({_epitaph(process, said)})")
        finally:
            process.kill()
            process.wait()


def _send(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - Popen was given a pipe
    try:
        process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:  # it died first: what it left says why
        pass


def _epitaph(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    code = process.wait()
    said.seek(0)
    tail = said.read()[-_TAIL:].decode("utf-8", "replace").strip().splitlines()[-1:]
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{reason}; it said: {tail[0]}" if tail else reason
