"""The files of an event log, and a receiver's place in them.

A file is named after its first event's number. Each record is length, CRC-32C of length and bytes, and bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

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
        return self.segment.exists() and any(records(self.segment, self.offset))


class Cursor:
    """One receiver's place in a log. Belongs to one thread at a time.

    Attributes:
        delivered: the last event that the receiver has for good.
    """

    def __init__(self, folder: Path, accepted: Callable[[], int], delivered: int) -> None:
        self._folder, self._accepted = folder, accepted
        self.delivered = delivered
        self._reader: _Position | None = None

    @property
    def waiting(self) -> int:
        """How many accepted events are still to be delivered."""
        return self._accepted() - self.delivered

    def read(self, limit: int = BATCH_BYTES) -> Batch | None:
        """The next accepted events after the delivered ones, at most ``limit`` bytes; None if there are none."""
        while True:
            try:
                return self._read(limit)
            except FileNotFoundError:  # the oldest file went meanwhile: the log is full
                self._reader = None

    def _read(self, limit: int) -> Batch | None:
        first, accepted = self.delivered + 1, self._accepted()
        if accepted < first:
            return None
        position = self._find(first)
        events: list[bytes] = []
        size = 0
        number, segment, offset = position.number, position.segment, position.offset
        for event, end in records(segment, offset):
            if number + len(events) > accepted or (events and size + len(event) > limit):
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

    def _find(self, number: int) -> _Position:
        """Where the event with this number begins, or the first one after it that there is."""
        reader = self._reader
        if reader is not None and reader.number == number and reader.has_more():
            return reader
        segments = segments_in(self._folder)
        segment = max((p for p in segments if first_of(p) <= number), key=first_of, default=segments[0])
        found, offset = first_of(segment), 0
        for _, end in records(segment, 0):
            if found >= number:
                break
            found, offset = found + 1, end
        return _Position(found, segment, offset)

    def _skip_damage(self, position: _Position, limit: int) -> Batch | None:
        """Goes on with the next file where this one cannot be read to its end: those events are lost, and counted."""
        later = [path for path in segments_in(self._folder) if first_of(path) > first_of(position.segment)]
        if not later:
            return None
        self._reader = _Position(first_of(later[0]), later[0], 0)
        lost = first_of(later[0]) - self.delivered - 1
        self.delivered = first_of(later[0]) - 1
        batch = self._read(limit)
        return None if batch is None else Batch(batch.first, batch.events, batch.lost + lost)


def record(event: bytes) -> bytes:
    """The checksum covers the length: a hole of zeros, which a power cut may leave, must not read as an empty event."""
    length = _LENGTH.pack(len(event))
    return length + _CHECKSUM.pack(google_crc32c.value(length + event)) + event


def segments_in(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    return sorted(folder.glob("*.log"))


def first_of(segment: Path) -> int:
    """The number of a file's first event."""
    return int(segment.stem)


def records(segment: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """The whole records from ``offset`` on, each with the offset behind it."""
    with segment.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
            (length,) = _LENGTH.unpack_from(head)
            event = file.read(length) if length <= _MAX_EVENT else b""
            if head + event != record(event):
                return
            offset += _HEAD_BYTES + length
            yield event, offset
