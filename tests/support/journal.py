"""A disk that remembers every step, and every state that a power cut may leave of them.

The model is stricter than any file system: bytes are safe only after their file was synced, names only after their
folder was; whatever is not safe may be there or not, in any combination, and a write may be torn. (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from skerry.disk import Disk, DiskFile


@dataclass(frozen=True)
class Create:
    path: str


@dataclass(frozen=True)
class Write:
    path: str
    data: bytes


@dataclass(frozen=True)
class Truncate:
    path: str
    size: int


@dataclass(frozen=True)
class SyncFile:
    path: str
    site: str = ""  # the line of ours that asked for it


@dataclass(frozen=True)
class Mkdir:
    path: str


@dataclass(frozen=True)
class Rename:
    source: str
    target: str


@dataclass(frozen=True)
class Unlink:
    path: str


@dataclass(frozen=True)
class Rmdir:
    path: str


@dataclass(frozen=True)
class SyncDir:
    path: str
    site: str = ""


@dataclass(frozen=True)
class Mark:
    """Not a step: something that the scenario knows to be true from here on."""

    what: str
    value: object


Step = Union[Create, Write, Truncate, SyncFile, Mkdir, Rename, Unlink, Rmdir, SyncDir, Mark]


class Killed(BaseException):
    """The process ends here, with what it had not synced yet still in the machine's memory."""


class JournalDisk(Disk):
    """Does every step for real below ``root``, and writes it down.

    ``kill_before`` ends the process at a step. Whatever else still runs in it by then (another thread or task, on its
    way out) does nothing any more, until `restarted`.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.steps = root, []
        self.kill_before: Callable[[Step], bool] | None = None
        self._killed = False

    def restarted(self) -> None:
        """Another process writes from here on."""
        self._killed = False

    def mark(self, what: str, value: object) -> None:
        if not self._killed:
            self.steps.append(Mark(what, value))

    def note(self, step: Step) -> None:
        if self.kill_before is not None and self.kill_before(step):
            self.kill_before, self._killed = None, True
        if self._killed:
            raise Killed(step)
        self.steps.append(step)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _open(self, path: Path, flags: int, mode: int) -> DiskFile:
        if not path.exists() or flags & os.O_TRUNC:
            self.note(Create(self.name(path)))
        return JournalFile(self, path, flags, mode)

    def mkdir(self, path: Path) -> None:
        self.note(Mkdir(self.name(path)))
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self.note(Rename(self.name(source), self.name(target)))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        if path.exists():
            self.note(Unlink(self.name(path)))
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self.note(Rmdir(self.name(path)))
        super().rmdir(path)

    def sync_dir(self, path: Path) -> None:
        self.note(SyncDir(self.name(path), _site()))
        super().sync_dir(path)


class JournalFile(DiskFile):
    def __init__(self, disk: JournalDisk, path: Path, flags: int, mode: int) -> None:
        super().__init__(path, flags, mode)
        self._disk = disk

    def write(self, data: bytes) -> None:
        self._disk.note(Write(self._disk.name(self.path), data))
        super().write(data)

    def truncate(self, size: int) -> None:
        if size < self.path.stat().st_size:
            self._disk.note(Truncate(self._disk.name(self.path), size))
        super().truncate(size)

    def sync(self) -> None:
        self._disk.note(SyncFile(self._disk.name(self.path), _site()))
        super().sync()


def _site() -> str:
    """The line that called the primitive: file, function and line."""
    frame = sys._getframe(2)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}"


# The model of what is safe


@dataclass
class File:
    """``safe`` is what a power cut leaves; ``pending`` are the changes since, each a function of bytes to bytes."""

    safe: bytes = b""
    pending: list[Write | Truncate] = field(default_factory=list)

    def content(self, kept: list[bool], *, torn: bool = False) -> bytes:
        """The bytes if only the ``kept`` changes arrived; a lost write leaves a hole where a later one arrived."""
        data = self.safe
        length = len(self.safe)
        for number, (change, arrived) in enumerate(zip(self.pending, kept, strict=True)):
            if isinstance(change, Truncate):
                if arrived:
                    data = data[: change.size]
                length = min(length, change.size)
                continue
            half = torn and number == len(self.pending) - 1
            piece = change.data[: len(change.data) // 2] if half else change.data
            if arrived:
                data = data[:length].ljust(length, b"\0") + piece
            length += len(change.data)
        return data


@dataclass
class Folder:
    """``safe`` are the names that a power cut leaves; ``now`` are all names; ``pending`` the changes between them."""

    safe: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, names: dict[str, Node | None]) -> None:
        self.pending.append(names)
        _apply(self.now, names)

    def names(self, kept: list[bool]) -> dict[str, Node]:
        found = dict(self.safe)
        for names, arrived in zip(self.pending, kept, strict=True):
            if arrived:
                _apply(found, names)
        return found


Node = Union[File, Folder]


def _apply(names: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Model:
    """The file system after some steps: what is there, and what of it is safe."""

    def __init__(self) -> None:
        self.root = Folder()

    def apply(self, step: Step) -> None:  # noqa: C901 - one case per step
        match step:
            case Create(path):
                folder, name = self._parent(path)
                node = folder.now.get(name)
                if isinstance(node, File):  # emptied, and the same file
                    node.pending.append(Truncate(path, 0))
                else:
                    folder.change({name: File()})
            case Write(path) | Truncate(path):
                self._file(path).pending.append(step)
            case SyncFile(path):
                file = self._file(path)
                file.safe, file.pending = file.content([True] * len(file.pending)), []
            case Mkdir(path):
                folder, name = self._parent(path)
                if name not in folder.now:
                    folder.change({name: Folder()})
            case Rename(source, target):
                folder, old = self._parent(source)
                _, new = self._parent(target)
                folder.change({old: None, new: folder.now[old]})
            case Unlink(path) | Rmdir(path):
                folder, name = self._parent(path)
                folder.change({name: None})
            case SyncDir(path):
                folder = self._folder(path)
                folder.safe, folder.pending = dict(folder.now), []
            case Mark():
                pass

    def _folder(self, path: str) -> Folder:
        node: Node = self.root
        for part in [p for p in path.split("/") if p not in ("", ".")]:
            assert isinstance(node, Folder)
            node = node.now[part]
        assert isinstance(node, Folder)
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name

    def _file(self, path: str) -> File:
        folder, name = self._parent(path)
        node = folder.now[name]
        assert isinstance(node, File)
        return node

    # What a power cut may leave

    def cuts(self) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Every kind of loss, as (its name, the tree it leaves: bytes by path, None for a folder)."""
        folders, files = self._unsafe()
        all_names, no_names = _choice(folders, kept=True), _choice(folders, kept=False)
        all_bytes, no_bytes = _choice(files, kept=True), _choice(files, kept=False)
        yield "nothing lost: the process was killed", self._tree(all_names, all_bytes)
        yield "everything unsynced lost", self._tree(no_names, no_bytes)
        yield "names kept, bytes lost", self._tree(all_names, no_bytes)
        yield "bytes kept, names lost", self._tree(no_names, all_bytes)
        yield "the last write torn", self._tree(all_names, all_bytes, torn=True)
        for node in [*folders, *files]:
            for index, change in enumerate(node.pending):
                one = {id(node): [i == index for i in range(len(node.pending))]}
                others = {id(node): [i != index for i in range(len(node.pending))]}
                if isinstance(node, Folder):  # names and bytes need not agree
                    for what, data in (("all bytes", all_bytes), ("no bytes", no_bytes)):
                        yield f"one name alone kept, {what}: {change}", self._tree({**no_names, **one}, data)
                        yield f"one name alone lost, {what}: {change}", self._tree({**all_names, **others}, data)
                else:
                    yield f"one write alone kept: {change}", self._tree(all_names, {**no_bytes, **one})
                    yield f"one write alone lost: {change}", self._tree(all_names, {**all_bytes, **others})

    def _unsafe(self) -> tuple[list[Folder], list[File]]:
        folders: dict[int, Folder] = {}
        files: dict[int, File] = {}

        def walk(node: Node) -> None:
            if isinstance(node, File):
                if node.pending:
                    files[id(node)] = node
                return
            if node.pending:
                folders[id(node)] = node
            seen = {id(child): child for child in [*node.safe.values(), *node.now.values()]}
            for names in node.pending:
                seen.update({id(child): child for child in names.values() if child is not None})
            for child in seen.values():
                walk(child)

        walk(self.root)
        return list(folders.values()), list(files.values())

    def _tree(
        self, names: dict[int, list[bool]], data: dict[int, list[bool]], *, torn: bool = False
    ) -> dict[str, bytes | None]:
        tree: dict[str, bytes | None] = {}

        def walk(node: Node, path: str) -> None:
            if isinstance(node, File):
                tree[path] = node.content(data.get(id(node), []), torn=torn)
                return
            if path:
                tree[path] = None
            for name, child in node.names(names.get(id(node), [])).items():
                walk(child, f"{path}/{name}" if path else name)

        walk(self.root, "")
        return tree


def _choice(nodes: list[Folder] | list[File], *, kept: bool) -> dict[int, list[bool]]:
    return {id(node): [kept] * len(node.pending) for node in nodes}


def restore(tree: dict[str, bytes | None], root: Path) -> None:
    """Writes a tree that a power cut left below ``root``."""
    for path, data in sorted(tree.items()):
        target = root / path
        if data is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
