"""Between the reader threads and the worker: every frame that was captured is counted once.

Per source, "latest" holds one frame and a newer one supersedes it, so that what is processed is fresh; "every" holds a
bounded queue: a file's reader waits for room, a camera's trigger that finds none has failed.
The law, at rest: captured = processed + superseded + failed.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np

from edge_agent.counts import Counts
from skerry.clock import Utc
from skerry.execution.processing import Frame

if TYPE_CHECKING:
    import av


Picture = Union[Frame, "av.VideoFrame"]


@dataclass(frozen=True)
class Captured:
    """A frame as its reader got it. A video's stays in the decoder's format: a frame that goes by is never converted.

    Attributes:
        number: from 0 since the source was opened.
        mono_s, utc: when it was captured.
        due_s: until when it must be answered (monotonic); None where the newest frame is wanted, not each.
    """

    source: str
    number: int
    mono_s: float
    utc: Utc
    picture: Picture
    due_s: float | None = None

    def pixels(self) -> Frame:
        """RGB uint8 [H, W, 3]."""
        if isinstance(self.picture, np.ndarray):
            return self.picture
        return np.asarray(self.picture.to_ndarray(format="rgb24"))


class Put(enum.Enum):
    """What became of a frame that was handed in."""

    TAKEN = "taken"
    FULL = "full"  # the queue had no room: counted as failed
    CLOSED = "closed"  # not counted at all


class Mailbox:
    """Frames of all sources on their way to the one worker. Sources take turns, so that none starves."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queues: dict[str, deque[Captured]] = {}
        self._limits: dict[str, int | None] = {}  # None: one slot, newest wins
        self._counts: dict[str, Counts] = {}
        self._turn: deque[str] = deque()
        self._closed = self._woken = False

    def add_source(self, source: str, queue: int | None) -> None:
        """Opens a source's slot; ``queue`` bounds a queue that makes the reader wait, None keeps the newest only."""
        with self._condition:
            self._queues[source], self._limits[source] = deque(), queue
            self._counts.setdefault(source, Counts())
            self._turn.append(source)

    def remove_source(self, source: str) -> list[Captured]:
        """Closes a source's slot; what waits in it is counted as superseded. Its counts stay in the total.

        Returns:
            Those of the waiting frames that were each to be answered.
        """
        with self._condition:
            left = list(self._queues.pop(source))
            self._count(source, superseded=len(left))
            self._turn.remove(source)
            wanted = self._limits.pop(source) is not None
            self._condition.notify_all()
            return left if wanted else []

    def put(self, frame: Captured, *, wait: bool = True) -> Put:
        """Hands a frame in. With ``wait``, a full queue is waited for."""
        with self._condition:
            queue, limit = self._queues.get(frame.source), self._limits.get(frame.source)
            while (
                wait and queue is not None and limit is not None and len(queue) >= limit and self._takes(queue, frame)
            ):
                self._condition.wait()
            if queue is None or not self._takes(queue, frame):
                return Put.CLOSED
            self._count(frame.source, captured=1)
            if limit is not None and len(queue) >= limit:
                self._count(frame.source, failed=1)
                return Put.FULL
            if limit is None and queue:
                queue.clear()
                self._count(frame.source, superseded=1)
            queue.append(frame)
            self._condition.notify_all()
            return Put.TAKEN

    def _takes(self, queue: deque[Captured], frame: Captured) -> bool:
        """Whether the source's slot is still the one that was looked up."""
        return not self._closed and self._queues.get(frame.source) is queue

    def take(self, timeout_s: float) -> Captured | None:
        """The next frame, of the source that has waited longest; None after ``timeout_s`` without one."""
        with self._condition:
            if not any(self._queues.values()) and not self._closed and not self._woken:
                self._condition.wait(timeout_s)
            self._woken = False
            for _ in range(len(self._turn)):
                source = self._turn[0]
                self._turn.rotate(-1)
                if queue := self._queues[source]:
                    frame = queue.popleft()
                    self._condition.notify_all()
                    return frame
            return None

    def wake(self) -> None:
        """Makes a `take` that waits, or the next one, return at once, so that the worker looks around."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def done(self, frame: Captured, *, failed: bool) -> None:
        """Says what became of a frame that was taken."""
        with self._condition:
            self._count(frame.source, failed=1) if failed else self._count(frame.source, processed=1)

    def close(self) -> list[Captured]:
        """Takes no more frames; those that wait are counted as superseded, so that the sum stays exact.

        Returns:
            Those of them that were each to be answered.
        """
        with self._condition:
            self._closed, left = True, []
            for source, queue in self._queues.items():
                self._count(source, superseded=len(queue))
                left += [frame for frame in queue if self._limits[source] is not None]
                queue.clear()
            self._condition.notify_all()
            return left

    def counts(self) -> dict[str, Counts]:
        """What became of each open source's frames so far."""
        with self._condition:
            return {source: self._counts[source] for source in self._queues}

    def total(self) -> Counts:
        """Over all sources that there ever were."""
        with self._condition:
            return sum(self._counts.values(), Counts())

    def _count(self, source: str, captured: int = 0, processed: int = 0, superseded: int = 0, failed: int = 0) -> None:
        before = self._counts[source]
        self._counts[source] = before + Counts(captured, processed, superseded, failed)
