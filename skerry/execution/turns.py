"""Timing models in turn, so that drift of the machine's speed falls on all alike, by the processor time that they take.

On a machine with nothing else to do that is the time on the clock. On a busy one the clock counts how long the process
waited for its turn as well, which says nothing of a model (docs/decisions/0020). Every backend that there is computes
on the CPU; one that waits for another device would have to be timed by the clock.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from skerry.clock import Clock, processor_s


class Timed(msgspec.Struct, frozen=True):
    """What was timed in turn.

    Attributes:
        times_ms: processor time of one run, by model and round.
        had_processor: share of the time on the clock in which this process had a processor, 1.0 on an idle machine.
    """

    times_ms: list[list[float]]
    had_processor: float = 1.0


class Turns:
    """Times so many models, whichever is next. One thread takes the turns, and those of the backends count along."""

    def __init__(self, models: int, clock: Clock) -> None:
        self._times: list[list[float]] = [[] for _ in range(models)]
        self._clock, self._began, self._used = clock, clock.monotonic(), processor_s()

    def take(self, model: int, run: Callable[[], object]) -> None:
        """Runs one model once."""
        used = processor_s()
        run()
        self._times[model].append((processor_s() - used) * 1e3)

    @property
    def seconds(self) -> float:
        """Since the first turn, by the clock."""
        return self._clock.monotonic() - self._began

    def timed(self) -> Timed:
        """All turns so far."""
        return Timed(self._times, min(1.0, (processor_s() - self._used) / max(self.seconds, 1e-9)))
