"""The list of architectures, and what a benchmark found about each: kept as files, so that a killed run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIST = Path("benchmarks/architectures.txt")


@dataclass(frozen=True)
class Architecture:
    """A line of the list; ``line`` counts from 0."""

    line: int
    family: str
    parameters: int
    input: str
    name: str

    @property
    def shape(self) -> list[int]:
        return [int(size) for size in self.input.split("x")]


@dataclass(frozen=True)
class Outcome:
    """What came of one.

    Attributes:
        missed: why it does not count, or null.
        facts: what was measured, the benchmark's own.
    """

    name: str
    missed: str | None
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def architectures() -> list[Architecture]:
    """The list, the smallest first."""
    lines = [line.split("\t") for line in LIST.read_text().splitlines() if not line.startswith("#")]
    found = [Architecture(n, family, int(count), size, name) for n, (family, count, size, name) in enumerate(lines)]
    return sorted(found, key=lambda entry: entry.parameters)


def outcomes(
    folder: Path, entries: Sequence[Architecture], make: Callable[[Architecture], tuple[str | None, dict[str, Any]]]
) -> list[Outcome]:
    """What an earlier run left of each that passed, else what ``make`` says now: why it missed or null, and facts."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_kept(folder / f"{entry.name}.json") or _made(folder, entry, make) for entry in entries]


def _kept(file: Path) -> Outcome | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        before = Outcome(**json.loads(file.read_text()))
        return None if before.missed else before
    return None


def _made(
    folder: Path, entry: Architecture, make: Callable[[Architecture], tuple[str | None, dict[str, Any]]]
) -> Outcome:
    started = time.monotonic()
    missed, facts = make(entry)
    outcome = Outcome(entry.name, missed, time.monotonic() - started, facts)
    (folder / f"{entry.name}.json").write_text(json.dumps(asdict(outcome), indent=1))
    print(f"{entry.name}: {f'✗ {missed}' if missed else '✓'} {facts} ({outcome.seconds:.0f} s)", flush=True)
    return outcome


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """Runs a command and all that it starts. What it printed, and the last thing it said if it failed."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return "", f"not done within {limit_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = (complained.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return said, last[:400] if process.returncode else None


def misses(found: Sequence[Outcome]) -> list[Outcome]:
    """Those that do not count, each with its reason printed."""
    missed = [outcome for outcome in found if outcome.missed]
    for outcome in missed:
        print(f"✗ {outcome.name}: {outcome.missed}")
    return missed
