"""Adopts files that anybody may have made, in a process that may die of them."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from compiler.child.adopt import adopt
from compiler.child.foreign_run import Wish
from skerry.errors import SkerryError

MEMORY_BYTES = 6 << 30


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def judge(raw: bytes, shape: list[int]) -> str:
    """ "adopted", "refused: …" or "raised …": the last must never be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(raw)
        try:
            adopt(path, Wish(shape, "image", rows=4))
        except SkerryError as exc:
            return f"refused: {exc}"
        except BaseException as exc:  # noqa: BLE001 - what it is, is the question
            return f"raised {type(exc).__name__}: {exc}"
    return "adopted"
