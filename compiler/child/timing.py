"""Timing models in turn, so that drift of the machine's speed falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from skerry.clock import SystemClock
from skerry.execution.backend import backend_class

_MIN_ROUNDS = 5


def runs_of(models: Mapping[str, str], backends: Mapping[str, str]) -> dict[str, Callable[[], object]]:
    """What runs each ONNX file once, on one thread: its backend, ONNX Runtime if none is named."""
    return {
        name: backend_class(backends.get(name, "onnxrt"))(Path(path), threads=1).run for name, path in models.items()
    }


def take_turns(
    runs: Mapping[str, Callable[[], object]], seconds: float, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Milliseconds per run, one list per model, for about ``seconds``."""
    for run in [*runs.values()] * 2:
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    clock = SystemClock()
    began, rounds = clock.monotonic(), 0
    while rounds < _MIN_ROUNDS or clock.monotonic() - began < seconds:
        for name, run in runs.items():
            started = clock.monotonic()
            run()
            times[name].append((clock.monotonic() - started) * 1e3)
        rounds += 1
        progress(f"timing, round {rounds}")
    return times
