"""A real agent in its own processes, as a test needs it: started, asked, killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from typing_extensions import Self

SKERRY = [sys.executable, "-m", "skerry"]

# Everything quick: a probation of a second, a watchdog of one.
CONFIG = """
data = "{data}"
trust = ["{trust}"]
threads = 1
[[sources]]
url = "{source}"
name = "camera"
loop = {loop}
{more_source}
[events]
jsonl = "{jsonl}"
terminal = false
sync_ms = 20
{more_events}
[probation]
seconds = 1.0
min_frames = 10
stall_s = 1.5
{more}
"""


class LiveAgent:
    """`skerry agent run` on a folder. Use as a context manager: leaving it stops the agent."""

    def __init__(
        self,
        folder: Path,
        source: Path,
        *,
        loop: bool = True,
        more_source: str = "",
        more_events: str = "",
        more: str = "",
    ) -> None:
        self.folder, self.data, self.jsonl = folder, folder / "data", folder / "events.jsonl"
        self.said = folder / "said.txt"
        self._config = folder / "agent.toml"
        self._config.write_text(
            CONFIG.format(
                data=self.data,
                trust=tiny.write_keys(folder),
                source=source,
                loop=str(loop).lower(),
                jsonl=self.jsonl,
                more_source=more_source,
                more_events=more_events,
                more=more,
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **environment: str) -> Self:
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [*SKERRY, "agent", "run", "--config", str(self._config), *options],
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """An ordered stop; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def output(self) -> str:
        return self.said.read_text()

    def status(self) -> dict[str, Any] | None:
        """What the agent says of itself; None while it does not answer."""
        try:
            running = json.loads((self.data / "agent.json").read_bytes())
            return get(running["port"], "/status")[1]
        except (OSError, ValueError):
            return None

    def record(self) -> dict[str, Any]:
        status = self.status()
        return status["record"] if status else {}

    def wait(self, reached: Callable[[dict[str, Any]], Any], timeout_s: float = 30.0) -> dict[str, Any]:
        """Polls the status until ``reached``."""
        deadline = time.monotonic() + timeout_s
        last = None
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None:
                last = status["record"]
                if reached(status):
                    return status
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the agent ended ({self.process.returncode}): {self.output()[-2000:]}")
            time.sleep(0.03)
        raise AssertionError(f"not reached within {timeout_s} s; last: {last}\n{self.output()[-2000:]}")

    def wait_kept(self, release: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """Waits until the release is kept, and in service: a new process has the record before it has the model."""
        return self.wait(lambda s: s["record"]["state"] == "idle" and is_active(s, release) and s["vision"], timeout_s)

    def install(self, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            "agent",
            "install",
            str(bundle),
            "--data",
            str(self.data),
            "--trust",
            str(self.folder / "trusted.pub"),
        ]
        return skerry(*command, *options)

    def lines(self) -> list[dict[str, Any]]:
        """The events that were delivered to the file."""
        if not self.jsonl.exists():
            return []
        return [json.loads(line) for line in self.jsonl.read_text().splitlines()]

    def kill(self) -> None:
        """SIGKILL for the agent's own process, not for its parent."""
        os.kill(json.loads((self.data / "agent.json").read_bytes())["pid"], signal.SIGKILL)


def is_active(status: dict[str, Any], release: str) -> bool:
    active = status["record"]["active"]
    return active is not None and active["release"] == release


def exact(status: dict[str, Any]) -> bool:
    """captured = processed + superseded + failed + waiting, for each source."""
    return all(
        s["captured"] == s["processed"] + s["superseded"] + s["failed"] + s["waiting"]
        for s in status["sources"].values()
    )


def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """A GET on loopback: HTTP status and JSON body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except http.client.HTTPException as exc:
        raise OSError(str(exc)) from exc
    finally:
        connection.close()


def skerry(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One `skerry` command, to its end."""
    return subprocess.run(
        [*SKERRY, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )
