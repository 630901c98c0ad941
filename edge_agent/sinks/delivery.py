"""The threads that accept events in groups and bring them to the sinks: one that accepts, and one for each sink.

A sink that is slow, or away, holds nobody back: each has its own place in the outbox, and its own pauses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec
from typing_extensions import Self

from edge_agent.outbox import Outbox
from edge_agent.segments import Batch
from edge_agent.sinks.sink import Sink
from edge_agent.status import SinkStatus
from skerry.backoff import Backoff
from skerry.clock import Clock
from skerry.errors import SinkError, SkerryError, StorageError
from skerry.wire import Stored

_log = logging.getLogger(__name__)

_CURSOR_S = 5.0
_RETRY_S = 1.0


class Guard:
    """Runs what may fail: logs the first failure and the recovery, not each attempt.

    Attributes:
        failing: why it fails just now.
        pause_s: how long the receiver asked to be left alone.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.failing: str | None = None
        self.pause_s = 0.0

    def __call__(self, action: Callable[[], object]) -> bool:
        """Whether ``action`` went through."""
        try:
            action()
        except SkerryError as exc:
            if self.failing is None:
                kind = "disk" if isinstance(exc, StorageError) else "delivery"
                _log.error("%s: events wait in the outbox (%s): %s", self._name, kind, exc)
            self.failing = str(exc)
            self.pause_s = exc.pause_s if isinstance(exc, SinkError) else 0.0
            return False
        if self.failing is not None:
            _log.info("%s: events are delivered again", self._name)
            self.failing = None
        return True


class Courier:
    """Brings one sink its events."""

    def __init__(self, sink: Sink, outbox: Outbox, clock: Clock, uniform: Callable[[float, float], float]) -> None:
        self.sink, self._stream, self._clock = sink, outbox.stream, clock
        self._cursor = outbox.cursor(sink.name)
        self._backoff = Backoff(_RETRY_S, sink.longest_pause_s, uniform)
        self._guard = Guard(sink.name)
        self._dirty, self._stop = threading.Event(), threading.Event()
        self._dirty.set()  # events of an earlier run may wait
        self._until = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self.lost = 0

    @property
    def failing(self) -> str | None:
        return self._guard.failing

    def status(self) -> SinkStatus:
        """How the sink fares."""
        return SinkStatus(
            delivered=self._cursor.delivered,
            waiting=self._cursor.waiting,
            lost=self.lost,
            skipped=self.sink.skipped,
            failing=self.failing,
        )

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Events were accepted."""
        self._dirty.set()

    def stop(self, until: float) -> None:
        """What there is may still go, until then (monotonic)."""
        self._until = until
        self._stop.set()
        self._dirty.set()

    def join(self) -> None:
        """A sink that hangs is left to the end of the process; what it did not take comes to it again."""
        self._thread.join(max(0.0, self._until - self._clock.monotonic()) + 0.5)
        if not self._thread.is_alive():
            self.sink.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            idle = not self._dirty.wait(self.sink.idle_s)
            self._dirty.clear()
            went = self._guard(self._tend) if idle else self._guard(self.drain)
            if went:
                self._backoff.worked()
            else:
                self._stop.wait(max(self._backoff.pause_s(), self._guard.pause_s))
                self._dirty.set()
        self._guard(self.drain)

    def _tend(self) -> None:
        self.sink.deliver(())

    def drain(self) -> None:
        """Delivers what there is. Raises what the sink raises."""
        while self._clock.monotonic() < self._until and (batch := self._cursor.read(self.sink.limit)):
            self._note_loss(batch)
            self.sink.deliver(self._stored(batch))
            self._cursor.deliver(batch.last)

    def _note_loss(self, batch: Batch) -> None:
        if batch.lost:
            _log.warning(
                "%s: %d events were lost before #%d: the outbox was full", self.sink.name, batch.lost, batch.first
            )
            self.lost += batch.lost
            self._cursor.deliver(batch.first - 1)

    def _stored(self, batch: Batch) -> list[Stored]:
        return [
            Stored(stream=self._stream, seq=number, event=msgspec.Raw(raw))
            for number, raw in enumerate(batch.events, batch.first)
        ]


def _longest(_low: float, high: float) -> float:
    return high


class Delivery:
    """Accepts events, and has them brought to the sinks.

    Use as a context manager: leaving it delivers what there is, within ``stop_s``, and ends the threads.

    Args:
        sync_s: how long events gather before they are accepted together.
        uniform: a random number between two, so that a fleet's pauses differ.
    """

    def __init__(
        self,
        outbox: Outbox,
        sinks: Sequence[Sink],
        clock: Clock,
        sync_s: float,
        *,
        stop_s: float = 5.0,
        uniform: Callable[[float, float], float] = _longest,
    ) -> None:
        self._outbox, self._clock, self._sync_s, self._stop_s = outbox, clock, sync_s, stop_s
        self.couriers = [Courier(sink, outbox, clock, uniform) for sink in sinks]
        self._guard = Guard("disk")
        self._dirty, self._stop = threading.Event(), threading.Event()
        self._dirty.set()
        self._thread = threading.Thread(target=self._run, name="accept", daemon=True)
        self._cursor_due = clock.monotonic() + _CURSOR_S
        self._woken = 0

    def __enter__(self) -> Self:
        self._thread.start()
        for courier in self.couriers:
            courier.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._dirty.set()
        self._thread.join()
        until = self._clock.monotonic() + self._stop_s
        for courier in self.couriers:
            courier.stop(until)
        for courier in self.couriers:
            courier.join()
        self._guard(self._outbox.close)

    @property
    def lost(self) -> int:
        """Events that the sink that missed most did not get: the outbox was full."""
        return max((courier.lost for courier in self.couriers), default=0)

    @property
    def failing(self) -> str | None:
        """Why events wait, if they do."""
        all_of_them = [self._guard.failing, *(courier.failing for courier in self.couriers)]
        return next((why for why in all_of_them if why is not None), None)

    def sinks(self) -> dict[str, SinkStatus]:
        """How each sink fares."""
        return {courier.sink.name: courier.status() for courier in self.couriers}

    def wake(self) -> None:
        """There is something to accept."""
        self._dirty.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._dirty.wait(_CURSOR_S)
            self._stop.wait(self._sync_s)  # let a group gather: one sync serves them all
            self._dirty.clear()
            self._turn()
        self._turn()

    def _turn(self) -> None:
        """Accepts what there is, and now and then remembers what was delivered. What fails is tried again."""
        if self._guard(self.accept):
            if self._clock.monotonic() >= self._cursor_due:
                self._guard(self._outbox.save_cursor)
                self._cursor_due = self._clock.monotonic() + _CURSOR_S
        elif not self._stop.wait(_RETRY_S):
            self._dirty.set()

    def accept(self) -> None:
        """Syncs, and wakes the sinks. Raises `StorageError`."""
        last = self._outbox.sync()
        if last > self._woken:
            self._woken = last
            for courier in self.couriers:
                courier.wake()
        if not self.couriers:
            self._outbox.deliver(last)
