"""Timing the reference and what was made of it, in turn. See `skerry.execution.turns`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skerry.clock import SystemClock
from skerry.execution.backend import backend_class
from skerry.execution.turns import Turns

_MIN_ROUNDS = 5


def runs_of(models: Mapping[str, str], backends: Mapping[str, str]) -> dict[str, Callable[[], object]]:
    """What runs each ONNX file once, on one thread: its backend, ONNX Runtime if none is named."""
    return {
        name: backend_class(backends.get(name, "onnxrt"))(Path(path), threads=1).run for name, path in models.items()
    }


def take_turns(
    runs: Mapping[str, Callable[[], object]], seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Milliseconds of processor time per run, by model, for about ``seconds``; and what there was of one."""
    for run in [*runs.values()] * 2:
        run()
    turns, rounds = Turns(len(runs), SystemClock()), 0
    while rounds < _MIN_ROUNDS or turns.seconds < seconds:
        for number, run in enumerate(runs.values()):
            turns.take(number, run)
        rounds += 1
        progress(f"timing, round {rounds}")
    timed = turns.timed()
    return {"times_ms": dict(zip(runs, timed.times_ms, strict=True)), "had_processor": timed.had_processor}
