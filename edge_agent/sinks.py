"""Where events go until there is a hub: a JSONL file and the terminal; and the thread that brings them there.

Only accepted events are delivered, in order. A sink may get an event again after a crash; the file drops the repeat by
the event's number, so that each one is in it once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec
from typing_extensions import Self

from edge_agent.outbox import Outbox
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import SkerryError, StorageError
from skerry.wire import Event, NoVerdict, Seen, SourceChanged, Stored, decode_event, encode

_log = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 20
_CURSOR_S = 5.0
_RETRY_S = 1.0


class Sink(Protocol):
    """A receiver of events."""

    def deliver(self, events: Sequence[Stored]) -> None:
        """Returns when the events are there for good. Raises `SkerryError` if they could not be; they come again."""

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line (skerry.wire.Stored), each event once, synced before it counts as delivered."""

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


class TerminalSink:
    """Events as lines for a person."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def deliver(self, events: Sequence[Stored]) -> None:
        for stored in events:
            self._write(describe(decode_event(bytes(stored.event))))

    def close(self) -> None:
        """Nothing to close."""


def describe(event: Event) -> str:
    """One line about an event."""
    when = datetime.fromtimestamp(event.utc_ms / 1000, timezone.utc).astimezone().strftime("%H:%M:%S")
    if isinstance(event, Seen):
        answers = ", ".join(f"{a.label} {a.score:.2f}" for a in event.answers[:5]) or "nothing"
        return f"{when}  {event.source} #{event.frame}: {answers}  [{event.release[:8]}]"
    if isinstance(event, SourceChanged):
        return f"{when}  source {event.source} {event.state}" + (f": {event.why}" if event.why else "")
    if isinstance(event, NoVerdict):
        number = "" if event.frame is None else f" #{event.frame}"
        return f"{when}  {event.source}{number}: no verdict: {event.why}"
    about = f" {event.release[:12]}" if event.release else ""
    why = f": {event.why}" if event.why else ""
    return f"{when}  update{about} {event.before} → {event.state} ({event.event}){why}"


class Delivery:
    """The thread that accepts events in groups and brings them to the sinks.

    Use as a context manager: leaving it delivers what there is and ends the thread.
    """

    def __init__(self, outbox: Outbox, sinks: Sequence[Sink], clock: Clock, sync_s: float) -> None:
        self._outbox, self._sinks, self._clock, self._sync_s = outbox, sinks, clock, sync_s
        self._dirty, self._stop = threading.Event(), threading.Event()
        self._dirty.set()  # events of an earlier run may wait
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._cursor_due = clock.monotonic() + _CURSOR_S
        self.lost = 0
        self.failing: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._dirty.set()
        self._thread.join()
        for sink in self._sinks:
            sink.close()

    def wake(self) -> None:
        """There is something to accept."""
        self._dirty.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._dirty.wait()
            self._stop.wait(self._sync_s)  # let a group gather: one sync serves them all
            self._dirty.clear()
            self._turn()
        self._turn()
        self._guard(self._outbox.close)

    def _turn(self) -> None:
        """Accepts and delivers what there is. What fails is tried again, and said once."""
        if self._guard(self._accept_and_deliver):
            if self._clock.monotonic() >= self._cursor_due:
                self._guard(self._outbox.save_cursor)
                self._cursor_due = self._clock.monotonic() + _CURSOR_S
        elif not self._stop.wait(_RETRY_S):
            self._dirty.set()

    def _accept_and_deliver(self) -> None:
        self._outbox.sync()
        while batch := self._outbox.read():
            if batch.lost:
                _log.warning("%d events were lost before #%d: the outbox was full", batch.lost, batch.first)
                self.lost += batch.lost
            events = [
                Stored(stream=self._outbox.stream, seq=number, event=msgspec.Raw(raw))
                for number, raw in enumerate(batch.events, batch.first)
            ]
            for sink in self._sinks:
                sink.deliver(events)
            self._outbox.deliver(batch.last)

    def _guard(self, action: Callable[[], object]) -> bool:
        """Whether ``action`` went through; logs the first failure and the recovery."""
        try:
            action()
        except SkerryError as exc:
            if self.failing is None:
                kind = "disk" if isinstance(exc, StorageError) else "delivery"
                _log.error("events wait in the outbox (%s): %s", kind, exc)
            self.failing = str(exc)
            return False
        if self.failing is not None:
            _log.info("events are delivered again")
            self.failing = None
        return True
