"""What an agent weighs: PSS of all its processes while it watches a video with MobileNetV2.

PSS shares out pages that several processes map, so the sum is what the device loses. Read from the kernel
(smaps_rollup), in service, after the proof's child has ended; the peak of the proof is printed beside.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.release import VIDEO, bundle, environment, key
from benchmarks.results import Row, tell
from edge_agent.follow import ask
from skerry.errors import SkerryError

AIM_MIB = 160.0
_FRAMES = 150


def family(pid: int) -> dict[int, str]:
    """The process and all below it, with their command lines."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return {p: _words(p) for p in found}


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def pss_mib(pid: int) -> float:
    """Proportional set size; 0 of a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits; a measurement that hangs says nothing."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise SystemExit("the agent did not get there in time")
        time.sleep(0.05)


def main() -> bool:
    """Measures and tells; whether the bar was met."""
    packed, quiet = bundle(), subprocess.DEVNULL
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        command = [sys.executable, "-m", "skerry", "agent", "run", "--model", str(packed), "--source", str(VIDEO)]
        options = ["--loop", "--quiet", "--threads", "1", "--data", str(data), "--trust", str(key())]
        with subprocess.Popen([*command, *options], env=environment(), stdout=quiet, stderr=quiet) as agent:
            try:
                rows = _watch(agent.pid, data)
            finally:
                agent.send_signal(signal.SIGTERM)
    return tell("memory", rows)


def _watch(pid: int, data: Path) -> list[Row]:
    proof = 0.0

    def watched() -> bool:
        nonlocal proof
        members = family(pid)
        proof = max([proof, *(pss_mib(p) for p, words in members.items() if "execution.prove" in words)])
        return _processed(data) >= _FRAMES and not any("execution.prove" in words for words in members.values())

    until(watched)
    weights = {p: pss_mib(p) for p in family(pid)}
    worker = max(weights, key=lambda p: weights[p])
    return [
        Row("all processes", sum(weights.values()), "MiB", AIM_MIB, f"PSS of {len(weights)}, in service"),
        Row("the agent", weights[worker], "MiB"),
        Row("its parent", sum(weights.values()) - weights[worker], "MiB"),
        Row("the proof's child, highest seen", proof, "MiB", None, "gone once the release has proved"),
    ]


def _processed(data: Path) -> int:
    with contextlib.suppress(SkerryError, KeyError):
        return sum(source["processed"] for source in ask(data)["sources"].values())
    return 0


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
