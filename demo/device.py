"""Real agents and a real hub as the story needs them: started, asked, followed, killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

SKERRY = [sys.executable, "-m", "skerry"]
Status = dict[str, Any]
Show = Callable[[str], None]


class Program:
    """One `skerry …` in a process of its own, whose output is shown line by line."""

    def __init__(self, arguments: list[str], show: Show) -> None:
        self._show = show
        self.process = subprocess.Popen(
            [*SKERRY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self._show(line.rstrip())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """An ordered stop."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self._listener.join(5)

    def kill(self) -> None:
        """SIGKILL, without a word."""
        self.process.kill()
        self.process.wait(30)

    def check(self, while_waiting: str) -> None:
        """Ends the story if the program has ended."""
        if self.process.poll() is not None:
            raise SystemExit(
                f"a program ended (code {self.process.returncode}) while the story waited: {while_waiting}"
            )


class Device(Program):
    """One `skerry agent run`."""

    def __init__(self, name: str, config: Path, data: Path, token: str, show: Show) -> None:
        self.name, self._data = name, data
        super().__init__(["agent", "run", "--config", str(config), "--enrol", token, "--name", name], show)

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
        """Polls until ``reached``."""

        def look() -> Status | None:
            self.check(what)
            status = self.status()
            return status if status is not None and reached(status) else None

        return wait(what, look, timeout_s)


def wait(what: str, look: Callable[[], Status | None], timeout_s: float) -> Status:
    """Polls until there is something to see. Ends the story if that takes too long: a hanging demo explains nothing."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (seen := look()) is not None:
            return seen
        time.sleep(0.1)
    raise SystemExit(f"not within {timeout_s:.0f} s: {what}")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def counts(status: Status) -> dict[str, int]:
    """The frames of all sources."""
    names = ("captured", "processed", "superseded", "failed", "waiting")
    return {name: sum(source[name] for source in status["sources"].values()) for name in names}


def exact_sum(status: Status) -> str:
    """The sum that must hold: captured = processed + superseded + failed + waiting."""
    c = counts(status)
    right = c["processed"] + c["superseded"] + c["failed"] + c["waiting"]
    mark = "=" if c["captured"] == right else "≠"
    return (
        f"{c['captured']} captured {mark} {c['processed']} processed + {c['superseded']} superseded + "
        f"{c['failed']} failed + {c['waiting']} waiting"
    )


def command(*arguments: str) -> str:
    """Runs `skerry …` as a person would; what it printed. Ends the story if it fails."""
    done = subprocess.run([*SKERRY, *arguments], capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"skerry {' '.join(arguments)} failed: {done.stderr}")
    return done.stdout.strip()
