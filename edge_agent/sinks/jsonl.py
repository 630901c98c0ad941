"""A file with one JSON object a line: each event once, in order. A repeat is dropped by its number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.sinks.sink import Sink
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import StorageError
from skerry.wire import Stored, encode

_TAIL_BYTES = 1 << 20


class JsonlSink(Sink):
    """One JSON object a line (skerry.wire.Stored), each event once, synced before it counts as delivered."""

    name = "jsonl"

    def __init__(self, path: Path, disk: Disk) -> None:
        disk.make_dirs(path.absolute().parent)
        new = not path.exists()
        last, whole = _last_line(path)
        self._last = (last.stream, last.seq) if last else ("", 0)
        self._length = whole
        self._file = disk.append(path)
        self._file.truncate(whole)  # a line that a power cut tore; its event comes again
        self._file.sync()  # what a killed process wrote may be in memory only
        if new:
            disk.sync_dir(path.absolute().parent)

    def deliver(self, events: Sequence[Stored]) -> None:
        stream, seq = self._last
        fresh = [event for event in events if event.stream != stream or event.seq > seq]
        if not fresh:
            return
        lines = b"".join(encode(event) + b"\n" for event in fresh)
        try:
            self._file.write(lines)
            self._file.sync()
        except StorageError:
            self._file.truncate(self._length)  # a part of it may be there
            raise
        self._length += len(lines)
        self._last = (fresh[-1].stream, fresh[-1].seq)

    def close(self) -> None:
        self._file.close()


def _last_line(path: Path) -> tuple[Stored | None, int]:
    """The last whole line's event, and how many bytes of the file are whole lines."""
    if not path.exists():
        return None, 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    whole = size - len(tail) + tail.rfind(b"\n") + 1 if b"\n" in tail else 0
    lines = tail[: len(tail) - (size - whole)].splitlines()
    if not lines:
        return None, whole
    return parse(lines[-1], Stored, f"{path} exists and is not a file of Skerry's events; name another file"), whole
