"""The worker: one thread that owns the model in service and takes each frame through it, from pixels to events.

Control reaches it by one immutable reference, `ActiveModel`, that is read once per frame: a swap falls between two
frames, and no frame ever meets two models.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from typing_extensions import Self

from edge_agent.mailbox import Captured, Mailbox
from skerry.clock import Clock
from skerry.errors import BackendError, SkerryError
from skerry.execution.backend import Backend, Tensors
from skerry.execution.ingraph import ToInput
from skerry.execution.processing import Decoder
from skerry.wire import Answer

_log = logging.getLogger(__name__)

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

    def __call__(self, frame: Captured) -> list[Answer]:
        """Raises `BackendError` if the model does not run, or says something that is not a number."""
        (tensor,) = self.backend.inputs.values()
        geometry = self.preprocess(frame.pixels(), tensor)
        outputs = self.backend.run()
        if not _finite(outputs):
            raise BackendError("the model's output is not finite")
        return self.decode(outputs, geometry)


def _finite(outputs: Tensors) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values())


class Emit(Protocol):
    """Hears what became of frames."""

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """A frame was answered."""

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """A frame that was to be answered is not."""


class Worker:
    """The inference thread. Use as a context manager: leaving it ends the thread and frees the model.

    Attributes:
        latencies_s: from capture to answer, of the newest frames of the model in service.
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

    def stalled_s(self) -> float:
        """How long the frame that is being processed has taken so far; 0 if none is."""
        since = self._busy_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def _run(self) -> None:
        while not self._stopping:
            active = self._take_swap()
            if frame := self._mailbox.take(_IDLE_S):
                self._busy_since = self._clock.monotonic()
                self._mailbox.done(frame, failed=not self._process(active, frame))
                self._busy_since = None

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
            answers = active(frame)
            self._emit.seen(frame, active.release, answers)
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
