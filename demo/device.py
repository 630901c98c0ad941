"""A real agent as the story needs it: started, asked, followed, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

SKERRY = [sys.executable, "-m", "skerry"]
Status = dict[str, Any]


class Device:
    """One `skerry agent run` in a process of its own. Use as a context manager: leaving it stops the agent."""

    def __init__(self, config: Path, data: Path, bundle: Path, show: Callable[[str], None]) -> None:
        self._data, self._show = data, show
        self._process = subprocess.Popen(
            [*SKERRY, "agent", "run", "--config", str(config), "--model", str(bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._listener.join(5)

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._show(line.rstrip())

    def status(self) -> Status | None:
        """The agent's own status; None while it does not answer."""
        done = subprocess.run(
            [*SKERRY, "agent", "status", "--json", "--data", str(self._data)],
            capture_output=True,
            text=True,
            check=False,
        )
        status: Status = json.loads(done.stdout) if done.returncode == 0 else {}
        return status if status.get("running") else None

    def wait(self, what: str, reached: Callable[[Status], bool], timeout_s: float) -> Status:
        """Polls until ``reached``. Ends the story if it takes too long: a demo that hangs explains nothing."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and reached(status):
                return status
            if self._process.poll() is not None:
                raise SystemExit(
                    f"the agent ended (code {self._process.returncode}) while the story waited until {what}"
                )
            time.sleep(0.1)
        raise SystemExit(f"not within {timeout_s:.0f} s: {what}")

    def install(self, bundle: Path) -> None:
        """Hands a bundle in, as a person would."""
        subprocess.run(
            [*SKERRY, "agent", "install", str(bundle), "--data", str(self._data)], check=True, capture_output=True
        )

    def kill(self, status: Status) -> None:
        """Ends the agent's process (not its parent) with SIGKILL."""
        os.kill(status["pid"], signal.SIGKILL)


def counts(status: Status) -> dict[str, int]:
    """The frames of all sources."""
    names = ("captured", "processed", "superseded", "failed", "waiting")
    return {name: sum(source[name] for source in status["sources"].values()) for name in names}


def in_service(status: Status) -> str | None:
    """Name and version of the release in service."""
    active = status["record"]["active"]
    return status["names"].get(active["release"]) if active else None


def exact_sum(status: Status) -> str:
    """The sum that must hold: captured = processed + superseded + failed + waiting."""
    c = counts(status)
    right = c["processed"] + c["superseded"] + c["failed"] + c["waiting"]
    mark = "=" if c["captured"] == right else "≠"
    return (
        f"{c['captured']} captured {mark} {c['processed']} processed + {c['superseded']} superseded + "
        f"{c['failed']} failed + {c['waiting']} waiting"
    )
