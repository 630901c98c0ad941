"""The outbox: a segment log of events. No database.

An event is *accepted* when it is synced, and only accepted events are delivered; all of them are. Files of about 1 MiB
are named after their first event's number; each record is length, CRC-32C of length and bytes, and bytes. A power cut
can only tear the newest file's tail, which is cut off when the log is opened again. When the log outgrows its quota,
whole oldest files go, and the next batch says how many events went with them.

    <folder>/stream                   the log's name: 128 random bits, made with it
    <folder>/<first number>.log       events, from the first number on
    <folder>/cursor                   the last event that was delivered
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from skerry.disk import Disk, DiskFile
from skerry.errors import StorageError

SEGMENT_BYTES = 1 << 20
BATCH_BYTES = 48 << 10
_LENGTH, _CHECKSUM = struct.Struct("<I"), struct.Struct("<I")
_HEAD_BYTES = 8
_MAX_EVENT = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Accepted events in order.

    Attributes:
        first: the number of the first one.
        lost: how many events before it are gone, because the log outgrew its quota.
    """

    first: int
    events: tuple[bytes, ...]
    lost: int

    @property
    def last(self) -> int:
        return self.first + len(self.events) - 1


@dataclass
class _Position:
    """Where the event with a number begins."""

    number: int
    segment: Path
    offset: int

    def has_more(self) -> bool:
        """Whether its file is there and goes on."""
        return self.segment.exists() and any(_records(self.segment, self.offset))


class Outbox:
    """One log. `append` and `sync` may be called from any thread; `read` and `deliver` from one."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        max_bytes: int,
        new_id: Callable[[], str],
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder, self._disk, self._max_bytes, self._segment_bytes = folder, disk, max_bytes, segment_bytes
        self._file_lock = threading.Lock()  # the open file: held while it is synced or exchanged; taken before _lock
        self._lock = threading.Lock()  # the numbers and the newest file's length
        disk.make_dirs(folder)
        self.stream = self._open_stream(new_id)
        self.delivered = self._saved = self._load_cursor()
        self._last = self._synced = self.delivered
        self._file: DiskFile | None = None
        self._length = 0
        self._reader: _Position | None = None
        self._open_newest()

    # Writing

    def append(self, event: bytes) -> int:
        """Writes an event and returns its number; it is accepted only after the next `sync`.

        Raises:
            StorageError: the disk refused; the event is not in the log.
        """
        record = _record(event)
        with self._lock:
            if self._file is not None and self._length + len(record) <= self._segment_bytes:
                return self._write(self._file, record)
        with self._file_lock, self._lock:
            return self._write(self._next_file(len(record)), record)

    def _write(self, file: DiskFile, record: bytes) -> int:
        try:
            file.write(record)
        except StorageError:
            file.truncate(self._length)  # a part of it may be there
            raise
        self._length += len(record)
        self._last += 1
        return self._last

    def sync(self) -> int:
        """Accepts every event appended so far; returns the number of the last accepted one."""
        with self._file_lock:
            with self._lock:
                file, last = self._file, self._last
            if file is not None and last > self._synced:
                file.sync()  # outside _lock: the worker goes on appending meanwhile
                self._synced = last
            return self._synced

    @property
    def accepted(self) -> int:
        """The number of the last accepted event; numbers start at 1."""
        return self._synced

    def _next_file(self, size: int) -> DiskFile:
        """A new file, if the newest has no room left."""
        if self._file is not None and self._length + size <= self._segment_bytes:
            return self._file  # another thread was faster
        if self._file is not None:
            self._file.sync()  # before a newer file exists: only the newest may have a torn tail
            self._file.close()
            self._synced, self._file = self._last, None
        file = self._disk.append(self.folder / f"{self._last + 1:020d}.log")
        self._disk.sync_dir(self.folder)
        self._file, self._length = file, 0
        self._evict()
        return file

    def _evict(self) -> None:
        """Drops whole oldest files until the log fits its quota."""
        segments = self._segments()
        sizes = {path: path.stat().st_size for path in segments}
        while len(segments) > 1 and sum(sizes[path] for path in segments) > self._max_bytes - self._segment_bytes:
            self._disk.unlink(segments.pop(0))

    # Reading

    @property
    def waiting(self) -> int:
        """How many accepted events are still to be delivered."""
        return self._synced - self.delivered

    def read(self, limit: int = BATCH_BYTES) -> Batch | None:
        """The next accepted events after the delivered ones, at most ``limit`` bytes; None if there are none."""
        first = self.delivered + 1
        if self._synced < first:
            return None
        position = self._find(first)
        events: list[bytes] = []
        size = 0
        number, segment, offset = position.number, position.segment, position.offset
        for event, end in _records(segment, offset):
            if number + len(events) > self._synced or (events and size + len(event) > limit):
                break
            events.append(event)
            size += len(event)
            offset = end
        if not events:
            return self._skip_damage(position, limit)
        self._reader = _Position(number + len(events), segment, offset)
        return Batch(number, tuple(events), number - first)

    def deliver(self, number: int) -> None:
        """Every event up to ``number`` has reached its receiver, for good."""
        self.delivered = max(self.delivered, number)

    def save_cursor(self) -> None:
        """Remembers what was delivered, and drops the files that hold nothing else.

        Not needed after every batch: a receiver drops the repeats that an older cursor brings.
        """
        if self.delivered == self._saved:
            return
        self._disk.replace(self.folder / "cursor", b"%d\n" % self.delivered)
        self._saved = self.delivered
        segments = self._segments()
        for path, following in itertools.pairwise(segments):
            if _first(following) <= self._saved + 1:
                self._disk.unlink(path)

    def _find(self, number: int) -> _Position:
        """Where the event with this number begins, or the first one after it that there is."""
        reader = self._reader
        if reader is not None and reader.number == number and reader.has_more():
            return reader
        segments = self._segments()
        segment = max((p for p in segments if _first(p) <= number), key=_first, default=segments[0])
        found, offset = _first(segment), 0
        for _, end in _records(segment, 0):
            if found >= number:
                break
            found, offset = found + 1, end
        return _Position(found, segment, offset)

    def _skip_damage(self, position: _Position, limit: int) -> Batch | None:
        """Goes on with the next file where this one cannot be read to its end: those events are lost, and counted."""
        later = [path for path in self._segments() if _first(path) > _first(position.segment)]
        if not later:
            return None
        self._reader = _Position(_first(later[0]), later[0], 0)
        lost = _first(later[0]) - self.delivered - 1
        self.delivered = _first(later[0]) - 1
        batch = self.read(limit)
        return None if batch is None else Batch(batch.first, batch.events, batch.lost + lost)

    def close(self) -> None:
        """Accepts what was appended, remembers what was delivered, closes the file."""
        self.sync()
        self.save_cursor()
        if self._file is not None:
            self._file.close()

    # Opening

    def _open_stream(self, new_id: Callable[[], str]) -> str:
        path = self.folder / "stream"
        if not path.exists():
            self._disk.replace(path, new_id().encode("ascii"))
        return path.read_text(encoding="ascii").strip()

    def _load_cursor(self) -> int:
        try:
            return int((self.folder / "cursor").read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def _open_newest(self) -> None:
        """Counts the newest file's events and cuts off a torn tail."""
        segments = self._segments()
        if not segments:
            return
        newest = segments[-1]
        ends = [end for _, end in _records(newest, 0)]
        count, end = len(ends), ends[-1] if ends else 0
        if _first(newest) + count - 1 < self.delivered:
            return  # damaged: numbers must not be used twice, so the next event starts a new file
        self._file = self._disk.append(newest)
        if newest.stat().st_size > end:
            self._file.truncate(end)
        self._file.sync()  # what a killed process left may be in memory only: without this it is not accepted
        self._length = end
        self._last = self._synced = _first(newest) + count - 1

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))


def _record(event: bytes) -> bytes:
    """The checksum covers the length: a hole of zeros, which a power cut may leave, must not read as an empty event."""
    length = _LENGTH.pack(len(event))
    return length + _CHECKSUM.pack(google_crc32c.value(length + event)) + event


def _first(segment: Path) -> int:
    return int(segment.stem)


def _records(segment: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """The whole records from ``offset`` on, each with the offset behind it."""
    with segment.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
            (length,) = _LENGTH.unpack_from(head)
            event = file.read(length) if length <= _MAX_EVENT else b""
            if head + event != _record(event):
                return
            offset += _HEAD_BYTES + length
            yield event, offset
