"""A model on its way through the passes, and the work directory that remembers each.

A `Candidate` is a folder, a digest and a history: nothing that lives in memory. A pass is named by the digest of what
went into it, its configuration, its version and its tools, so resume, cache and isolation are one look-up: a pass whose
folder is there has been run, whoever ran it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import msgspec

from skerry.clock import Clock
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import FormatError, SkerryError, StorageFull

# What may change the bytes that a pass makes.
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "skerry")
_DONE = "done.json"
_NO_ROOM = 1 << 16  # bytes


class Step(msgspec.Struct, frozen=True):
    """One line of a candidate's history."""

    name: str
    key: str
    digest: str


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished pass leaves beside its files."""

    files: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What one pass made.

    Attributes:
        digest: over the names and contents of its files.
        facts: what the pass reports besides files: small and JSON.
    """

    name: str
    folder: Path
    digest: str
    history: tuple[Step, ...]
    facts: Mapping[str, Any]

    def __truediv__(self, file: str) -> Path:
        return self.folder / file


class Watch(Protocol):
    """Hears of passes."""

    def began(self, name: str) -> None: ...

    def ended(self, name: str, seconds: float | None) -> None:
        """``seconds`` is None for a pass that was done before."""


# A pass: fills the empty folder that it is given, and returns its facts.
Make = Callable[[Path], Mapping[str, Any]]


class Work:
    """The work directory: one folder per pass that ended."""

    def __init__(self, root: Path, disk: Disk, clock: Clock, watch: Watch) -> None:
        self._root, self._disk, self._clock, self._watch = root, disk, clock, watch
        self._tools = tool_versions()

    def cached(self, name: str, version: int, inputs: Sequence[Candidate], config: object, make: Make) -> Candidate:
        """The pass's candidate: from an earlier run if its key is the same, else by ``make``."""
        key = _digest_of([name, version, [c.digest for c in inputs], config, self._tools])
        folder = self._root / f"{name}-{key[:16]}"
        started = self._clock.monotonic()
        self._watch.began(name)
        before = _read(folder)
        done = before or self._run(folder, make)
        self._watch.ended(name, None if before else self._clock.monotonic() - started)
        history = tuple(dict.fromkeys(step for c in inputs for step in c.history))
        digest = _digest_of(done.files) if done.files else key  # what makes no file is named by what went into it
        return Candidate(name, folder, digest, (*history, Step(name, key, digest)), done.facts)

    def scratch(self, name: str) -> Path:
        """An empty folder for what is no pass: this process's own until it ends."""
        self._disk.make_dirs(self._root)
        for number in itertools.count():
            folder = self._root / f"{name}-{number}"
            with contextlib.suppress(BlockingIOError):
                _lock(folder, fcntl.LOCK_NB)  # until the process ends: what it left is then another one's to clear
                break
        self._disk.remove_tree(folder)
        self._disk.make_dirs(folder)
        return folder

    def _run(self, folder: Path, make: Make) -> _Done:
        """Runs the pass, unless another process is at it: then waits for what that one makes."""
        self._disk.make_dirs(self._root)
        lock = _lock(folder)
        try:
            return _read(folder) or self._fill(folder, make)
        finally:
            os.close(lock)

    def _fill(self, folder: Path, make: Make) -> _Done:
        part = folder.with_name(folder.name + ".part")
        self._disk.remove_tree(part)
        self._disk.make_dirs(part)
        try:
            facts = make(part)
            done = _Done(files=file_digests(part), facts=dict(facts))
            self._disk.replace(part / _DONE, msgspec.json.encode(done))
        except BaseException as exc:
            full = not isinstance(exc, SkerryError) and shutil.disk_usage(part).free < _NO_ROOM
            self._disk.remove_tree(part)
            if full:  # the libraries that write here say so in many ways, or read back half of what they wrote
                raise StorageFull(f"cannot write below {folder}: the disk is full; free some space") from exc
            raise
        self._disk.remove_tree(folder)
        self._disk.rename(part, folder)
        return done


def _lock(folder: Path, mode: int = 0) -> int:
    """Holds ``folder`` until the returned descriptor is closed. Raises `BlockingIOError` if `LOCK_NB` finds it held."""
    lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | mode)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _read(folder: Path) -> _Done | None:
    """A finished pass, if its files are still what it made."""
    try:
        done = parse((folder / _DONE).read_bytes(), _Done, _DONE)
        return done if file_digests(folder) == done.files else None
    except (OSError, FormatError):
        return None


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 by path of every file below ``folder``, but for the pass's own mark."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _DONE)
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in paths}


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of `TOOLS`."""
    return {name: metadata.version(name) for name in TOOLS}
