"""The only durable writes.

Each primitive of `Disk` is one step that a power cut can fall before or after; a test records the steps and rebuilds
every state that a cut may leave (tests/crash). What is made of several steps (`Disk.store`, `Disk.make_dirs`,
`Disk.remove_tree`) is written here once, in the order that survives: data, sync, rename, sync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from skerry.errors import StorageError, StorageFull

# A named point that a test can stop the process at, to see it come back. The composition root passes one that counts.
Reached = Callable[[str], None]


def nowhere(_point: str) -> None:
    """The `Reached` of production: passes every point."""


CRASH_POINT = "SKERRY_CRASH_AT"  # where a process kills itself: for tests that see it come back


def crash_point(environ: Mapping[str, str]) -> Reached:
    """The `Reached` that the environment asks for: as a rule `nowhere`."""
    wanted = environ.get(CRASH_POINT)
    if not wanted:
        return nowhere

    def reached(point: str) -> None:
        if point == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


@contextlib.contextmanager
def _storage(what: str, path: Path) -> Iterator[None]:
    """Turns an operating system's refusal into ours, with the path and what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"cannot {what} {path}: the disk is full; free some space, nothing was changed") from exc
        raise StorageError(f"cannot {what} {path}: {exc.strerror}") from exc


class DiskFile:
    """An open file. Bytes are safe from a power cut only after `sync`, and its name only after `Disk.sync_dir`."""

    def __init__(self, path: Path, flags: int, mode: int) -> None:
        self.path = path
        with _storage("open", path):
            self._fd = os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with _storage("write", self.path):
            while view:
                view = view[os.write(self._fd, view) :]

    def truncate(self, size: int) -> None:
        with _storage("truncate", self.path):
            os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with _storage("sync", self.path):
            os.fsync(self._fd)  # noqa: TID251 - this is the place

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Disk:
    """The file system, one step at a time. Raises `StorageFull` or `StorageError`, never `OSError`."""

    # Primitives: a recording disk overrides these and nothing else.

    def create(self, path: Path, mode: int = 0o644) -> DiskFile:
        """Opens an empty file for writing, new or emptied."""
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)

    def append(self, path: Path) -> DiskFile:
        """Opens a file for writing at its end; makes it if need be."""
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _open(self, path: Path, flags: int, mode: int) -> DiskFile:
        return DiskFile(path, flags, mode)

    def mkdir(self, path: Path) -> None:
        with _storage("make the folder", path):
            path.mkdir(exist_ok=True, mode=0o755)

    def rename(self, source: Path, target: Path) -> None:
        with _storage("rename to", target):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        with _storage("remove", path):
            path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        with _storage("remove the folder", path):
            path.rmdir()

    def sync_dir(self, path: Path) -> None:
        with _storage("sync the folder", path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)  # noqa: TID251 - this is the place
            finally:
                os.close(fd)

    # Made of primitives.

    def store(self, path: Path, chunks: Iterable[bytes], mode: int = 0o644) -> None:
        """Puts the bytes of ``chunks`` at ``path``: after a power cut the old content is there, or all of the new.

        Nothing is left of it if ``chunks`` or the disk raises.
        """
        part = path.with_name(path.name + ".part")
        try:
            self.unlink(part)  # one that was cut off may have another mode
            with self.create(part, mode) as file:
                for chunk in chunks:
                    file.write(chunk)
                file.sync()
            self.rename(part, path)
        except BaseException:
            self.unlink(part)
            raise
        self.sync_dir(path.parent)

    def replace(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Puts ``data`` at ``path``, as `store` does."""
        self.store(path, [data], mode)

    def make_dirs(self, path: Path) -> None:
        """Makes ``path`` and its parents, each one's name synced."""
        if path.is_dir():
            return
        self.make_dirs(path.parent)
        self.mkdir(path)
        self.sync_dir(path.parent)

    def remove_tree(self, path: Path) -> None:
        """Removes ``path`` and what is below; does not follow links. A power cut may leave a part of it."""
        if path.is_symlink() or not path.is_dir():
            self.unlink(path)
            return
        for child in sorted(path.iterdir()):
            self.remove_tree(child)
        self.rmdir(path)
