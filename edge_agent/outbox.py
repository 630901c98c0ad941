"""The outbox: a segment log of events. No database.

An event is *accepted* when it is synced, and only accepted events are delivered; all of them are. Files of about 1 MiB
are named after their first event's number; each record is length, CRC-32C of length and bytes, and bytes. A power cut
can only tear the newest file's tail, which is cut off when the log is opened again. When the log outgrows its quota,
whole oldest files go, and the next batch says how many events went with them.

    <folder>/stream                   the log's name: 128 random bits, made with it
    <folder>/<first number>.log       events, from the first number on
    <folder>/cursor                   the last event that every receiver has
    <folder>/cursors                  of receivers that are further than that: name and last event that they have, JSON
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.segments import BATCH_BYTES, Batch, Cursor, first_of, record, records, segments_in
from skerry.disk import Disk, DiskFile
from skerry.errors import StorageError

SEGMENT_BYTES = 1 << 20


class Outbox:
    """One log. `append` and `sync` may be called from any thread; `read` and `deliver` from one.

    It has one receiver, whom `read` and `deliver` are about; or several, each with a `cursor` of its own.
    """

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
        self._saved = self._load_cursor()
        self._own = Cursor(folder, lambda: self._synced, self._saved)
        self._cursors: dict[str, Cursor] = {}
        self._saved_cursors = self._load_cursors()
        self._last = self._synced = max([self._saved, *self._saved_cursors.values()])
        self._file: DiskFile | None = None
        self._length = 0
        self._open_newest()

    # Writing

    def append(self, event: bytes) -> int:
        """Writes an event and returns its number; it is accepted only after the next `sync`.

        Raises:
            StorageError: the disk refused; the event is not in the log.
        """
        raw = record(event)
        with self._lock:
            if self._file is not None and self._length + len(raw) <= self._segment_bytes:
                return self._write(self._file, raw)
        with self._file_lock, self._lock:
            return self._write(self._next_file(len(raw)), raw)

    def _write(self, file: DiskFile, raw: bytes) -> int:
        try:
            file.write(raw)
        except StorageError:
            file.truncate(self._length)  # a part of it may be there
            raise
        self._length += len(raw)
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
        segments = segments_in(self.folder)
        sizes = {path: path.stat().st_size for path in segments}
        while len(segments) > 1 and sum(sizes[path] for path in segments) > self._max_bytes - self._segment_bytes:
            self._disk.unlink(segments.pop(0))

    # Receivers

    def cursor(self, name: str) -> Cursor:
        """The place of one of several receivers. A new one begins where the slowest of the others stood."""
        if name not in self._cursors:
            delivered = max(self._saved, self._saved_cursors.get(name, 0))
            self._cursors[name] = Cursor(self.folder, lambda: self._synced, delivered)
        return self._cursors[name]

    @property
    def delivered(self) -> int:
        """The last event that every receiver has."""
        return min((cursor.delivered for cursor in self._cursors.values()), default=self._own.delivered)

    @property
    def waiting(self) -> int:
        """How many accepted events are still to be delivered to some receiver."""
        return self._synced - self.delivered

    def read(self, limit: int = BATCH_BYTES) -> Batch | None:
        """As `Cursor.read`, for the only receiver."""
        return self._own.read(limit)

    def deliver(self, number: int) -> None:
        """As `Cursor.deliver`, for the only receiver."""
        self._own.deliver(number)

    def save_cursor(self) -> None:
        """Remembers what was delivered, and drops the files that hold nothing that a receiver still has to get.

        Not needed after every batch: a receiver drops the repeats that an older cursor brings.
        """
        delivered = self.delivered
        self._save_cursors(delivered)
        if delivered == self._saved:
            return
        self._disk.replace(self.folder / "cursor", b"%d\n" % delivered)
        self._saved = delivered
        segments = segments_in(self.folder)
        for path, following in itertools.pairwise(segments):
            if first_of(following) <= self._saved + 1:
                self._disk.unlink(path)

    def _save_cursors(self, least: int) -> None:
        """Of those that are further than the slowest; what an older file says of the others is below it: harmless."""
        ahead = {name: cursor.delivered for name, cursor in self._cursors.items() if cursor.delivered > least}
        if ahead and ahead != self._saved_cursors:
            self._disk.replace(self.folder / "cursors", msgspec.json.encode(ahead))
            self._saved_cursors = ahead

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

    def _load_cursors(self) -> dict[str, int]:
        try:
            return msgspec.json.decode((self.folder / "cursors").read_bytes(), type=dict[str, int])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def _open_newest(self) -> None:
        """Counts the newest file's events and cuts off a torn tail."""
        segments = segments_in(self.folder)
        if not segments:
            return
        newest = segments[-1]
        ends = [end for _, end in records(newest, 0)]
        count, end = len(ends), ends[-1] if ends else 0
        if first_of(newest) + count - 1 < self._last:
            return  # damaged: numbers must not be used twice, so the next event starts a new file
        self._file = self._disk.append(newest)
        if newest.stat().st_size > end:
            self._file.truncate(end)
        self._file.sync()  # what a killed process left may be in memory only: without this it is not accepted
        self._length = end
        self._last = self._synced = first_of(newest) + count - 1
