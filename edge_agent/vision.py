"""The worker: one thread that owns the model in service and takes each frame through it, from pixels to events.

Control reaches it by one immutable reference, `ActiveModel`, that is read once per frame: a swap falls between two
frames, and no frame ever meets two models.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from typing_extensions import Self

from edge_agent.histogram import Histogram
from edge_agent.mailbox import Captured, Mailbox
from skerry.clock import Clock
from skerry.errors import BackendError, SkerryError
from skerry.execution.backend import Backend, Tensors
from skerry.execution.ingraph import ToInput
from skerry.execution.processing import Decoder
from skerry.wire import Answer, SourceState

_log = logging.getLogger(__name__)

T = TypeVar("T")
STAGES = ("wait", "preprocess", "infer", "decode", "tell")
_MOST_JOBS = 16
_IDLE_S = 0.2  # how long the worker waits for a frame before it looks for a swap
_KEPT_LATENCIES = 512


@dataclass(frozen=True, eq=False)
class ActiveModel:
    """One release, loaded: everything that turns a frame into answers, and nothing of any other release."""

    release: str
    variant: str
    backend: Backend
    preprocess: ToInput
    decode: Decoder

    def __call__(self, frame: Captured, lap: Callable[[str], None]) -> list[Answer]:
        """Raises `BackendError` if the model does not run, or says something that is not a number.

        Args:
            lap: hears the name of each stage when it is done.
        """
        (tensor,) = self.backend.inputs.values()
        geometry = self.preprocess(frame.pixels(), tensor)
        lap("preprocess")
        outputs = self.backend.run()
        lap("infer")
        if not _finite(outputs):
            raise BackendError("the model's output is not finite")
        answers = self.decode(outputs, geometry)
        lap("decode")
        return answers


def _finite(outputs: Tensors) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values())


class Emit(Protocol):
    """Hears what became of frames."""

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """A frame was answered."""

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """A frame that was to be answered is not."""


class Tell(Emit, Protocol):
    """Hears of sources, too."""

    def source_changed(self, source: str, state: SourceState, why: str | None) -> None:
        """A source is lost, frozen, or back."""


class Hears:
    """Several that hear what became of frames, in order; the first also hears of sources."""

    def __init__(self, events: Tell, others: Sequence[Emit]) -> None:
        self._events, self._all = events, [events, *others]

    def source_changed(self, source: str, state: SourceState, why: str | None) -> None:
        self._events.source_changed(source, state, why)

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        for one in self._all:
            one.seen(frame, release, answers)

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        for one in self._all:
            one.no_verdict(source, frame, why, release)


class Worker:
    """The inference thread. Use as a context manager: leaving it ends the thread and frees the model.

    Attributes:
        latencies_s: from capture to answer, of the newest frames of the model in service.
        stages: how long each stage of a frame took, since the start.
    """

    def __init__(self, mailbox: Mailbox, emit: Emit, clock: Clock, stop_s: float) -> None:
        self._mailbox, self._emit, self._clock, self._stop_s = mailbox, emit, clock, stop_s
        self._active: ActiveModel | None = None
        self._next: ActiveModel | None = None
        self._swap_wanted = False
        self._swapped = threading.Condition()
        self._busy_since: float | None = None
        self._stopping = self._failing = False
        self.latencies_s: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self.stages = {stage: Histogram() for stage in STAGES}
        self._lap_s = 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name="vision", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stopping = True
        for frame in self._mailbox.close():
            self._emit.no_verdict(frame.source, frame, "the agent stopped before its turn came")
        self._thread.join(self._stop_s)  # a worker that hangs in a model is left to the end of the process
        if not self._thread.is_alive() and self._active is not None:
            self._active.backend.close()

    @property
    def active(self) -> ActiveModel | None:
        """The model in service."""
        return self._active

    def swap(self, model: ActiveModel | None) -> None:
        """Puts ``model`` into service from the next frame on; returns when the one before is out and freed."""
        before = self._active
        with self._swapped:
            self._next, self._swap_wanted = model, True
            self._mailbox.wake()
            while self._swap_wanted and self._thread.is_alive():
                self._swapped.wait(_IDLE_S)
        if before is not None and before is not model and not self._swap_wanted:
            before.backend.close()

    def ask(self, job: Callable[[ActiveModel], T]) -> Future[T]:
        """Runs ``job`` with the model in service, in the worker's thread, between two frames.

        Raises:
            BackendError: no model is in service, or too many jobs wait already.
        """
        if len(self._jobs) >= _MOST_JOBS:
            raise BackendError(f"{_MOST_JOBS} requests wait for the model already")
        if self._active is None:
            raise BackendError("no model is in service")
        future: Future[T] = Future()

        def run() -> None:
            try:
                if self._active is None:
                    raise BackendError("no model is in service")  # noqa: TRY301 - one way out
                future.set_result(job(self._active))
            except Exception as exc:  # noqa: BLE001 - whoever asked must hear of it, and the worker goes on
                future.set_exception(exc)

        self._jobs.append(run)
        self._mailbox.wake()
        return future

    def stalled_s(self) -> float:
        """How long the frame that is being processed has taken so far; 0 if none is."""
        since = self._busy_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def _run(self) -> None:
        while not self._stopping:
            active = self._take_swap()
            frame = self._mailbox.take(_IDLE_S)
            self._busy_since = self._lap_s = self._clock.monotonic()
            if frame is not None:
                self.stages["wait"].observe(self._lap_s - frame.mono_s)
                self._mailbox.done(frame, failed=not self._process(active, frame))
            if self._jobs:
                self._jobs.popleft()()
            self._busy_since = None
        while self._jobs:  # whoever asked must not wait for ever
            self._jobs.popleft()()

    def _lap(self, stage: str) -> None:
        """A stage of the frame is done."""
        now = self._clock.monotonic()
        self.stages[stage].observe(now - self._lap_s)
        self._lap_s = now

    def _take_swap(self) -> ActiveModel | None:
        """Between two frames: the one place where the model in service changes."""
        if self._swap_wanted:
            with self._swapped:
                self._active, self._next, self._swap_wanted = self._next, None, False
                self.latencies_s.clear()
                self._swapped.notify_all()
        return self._active

    def _process(self, active: ActiveModel | None, frame: Captured) -> bool:
        """Whether the frame was answered."""
        if active is None:
            return self._give_up(frame, "no model is in service")
        if frame.due_s is not None and (late := self._clock.monotonic() - frame.due_s) > 0:
            return self._give_up(frame, f"its turn came {late * 1e3:.0f} ms after its deadline")
        try:
            answers = active(frame, self._lap)
            self._emit.seen(frame, active.release, answers)
            self._lap("tell")
        except (SkerryError, ValueError, MemoryError) as exc:
            self._failed(active, exc)
            return self._give_up(frame, str(exc), active.release)
        self.latencies_s.append(self._clock.monotonic() - frame.mono_s)
        self._failing = False
        return True

    def _give_up(self, frame: Captured, why: str, release: str | None = None) -> bool:
        """False. Of a frame that was to be answered in any case, it is told."""
        if frame.due_s is not None:
            self._emit.no_verdict(frame.source, frame, why, release)
        return False

    def _failed(self, active: ActiveModel, exc: Exception) -> None:
        if not self._failing:
            _log.error("release %s fails on live frames: %s", active.release[:12], exc)
        self._failing = True
