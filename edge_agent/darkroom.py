"""Pictures are made here, in one thread behind the worker: what passes the gate, made smaller, encoded, kept.

An event that has a picture names its digest, so it cannot be written down before the picture is made. From the first
picture on, every event goes through this thread, so that they stay in one row; the worker goes on meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import msgspec
from typing_extensions import Self

from edge_agent.config import PicturesConfig
from edge_agent.gate import EVENT_PICTURE, Gate
from edge_agent.mailbox import Captured
from edge_agent.pictures import Pictures, encode_jpeg
from edge_agent.status import PicturesStatus
from skerry.errors import SkerryError
from skerry.wire import Answer, Event, Picture

_log = logging.getLogger(__name__)

FAILURES = (SkerryError, ValueError, OSError, MemoryError)  # of a frame, its encoder, or the disk
_MOST = 4  # frames that wait here: each holds a decoded picture


class Darkroom:
    """The thread. Use as a context manager: leaving it finishes what waits."""

    def __init__(self) -> None:
        self._jobs = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self.used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
        self._jobs.shutdown(wait=True)

    def make(self, job: Callable[[], None]) -> bool:
        """Has a picture made, behind all that waits. False if too many wait: then it is not made."""
        with self._lock:
            if self._waiting >= _MOST or self._closed:
                return False
            self._waiting += 1
            self.used = True
            self._jobs.submit(self._one, job).add_done_callback(_say_bug)
        return True

    def then(self, job: Callable[[], None]) -> None:
        """Does something behind all that waits; at once if there never was a picture."""
        with self._lock:
            if self.used and not self._closed:
                self._jobs.submit(job).add_done_callback(_say_bug)
                return
        job()

    def _one(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._lock:
                self._waiting -= 1


def _say_bug(done: Future[None]) -> None:
    if (exc := done.exception()) is not None:
        _log.error("a bug: a picture was not made, or an event not written down", exc_info=exc)


class EventPictures:
    """Gives events their pictures.

    Attributes:
        gate: what may leave; may be replaced while pictures are made.
        missed, withheld: pictures that were wanted and not made, and not let out.
    """

    def __init__(self, darkroom: Darkroom, gate: Gate, pictures: Pictures, config: PicturesConfig) -> None:
        self._darkroom, self.gate, self._pictures, self._config = darkroom, gate, pictures, config
        self.missed = self.withheld = 0
        self.failing: str | None = None

    def tell(self, event: Event, frame: Captured, answers: Sequence[Answer], record: Callable[[Event], None]) -> None:
        """Has ``record`` hear of the event with its picture, after all events before.

        Args:
            event: of a kind that has a ``picture``.
        """

        def made() -> None:
            record(msgspec.structs.replace(event, picture=self._take(frame, answers)))

        if not self._darkroom.make(made):
            self.missed += 1
            self.then(event, record)

    def then(self, event: Event, record: Callable[[Event], None]) -> None:
        """Has ``record`` hear of an event without a picture, after all events before."""
        self._darkroom.then(lambda: record(event))

    def _take(self, frame: Captured, answers: Sequence[Answer]) -> Picture | None:
        """The picture, once it is on the disk; an event is told without it, if the disk refuses."""
        try:
            pixels = self.gate.open(EVENT_PICTURE, frame, answers)
            if pixels is None:
                self.withheld += 1
                return None
            raw, picture = encode_jpeg(pixels, self._config.quality, self._config.longest)
            self._pictures.put(raw, picture.sha256)
        except FAILURES as exc:
            if self.failing is None:
                _log.error("events are told without their pictures: %s", exc)
            self.failing = str(exc)
            self.missed += 1
            return None
        self.failing = None
        return picture

    def read(self, sha256: str) -> bytes | None:
        """A picture's file (JPEG) by its digest; None if it is not here."""
        return self._pictures.read(sha256)

    def status(self, sent: int, refused: int) -> PicturesStatus:
        """How they fare."""
        return status(self._pictures, self.missed, self.withheld, sent, refused, self.failing)


def status(
    pictures: Pictures, missed: int, withheld: int, sent: int, refused: int, failing: str | None
) -> PicturesStatus:
    """Of one folder."""
    return PicturesStatus(
        kept=pictures.count,
        bytes=pictures.size,
        missed=missed,
        withheld=withheld,
        dropped=pictures.dropped,
        unsent=pictures.unsent,
        waiting=pictures.waiting,
        sent=sent,
        refused=refused,
        failing=failing,
    )
