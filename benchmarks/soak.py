"""The long runs: the crash suites again and again. ``python -m benchmarks.soak MINUTES``; 30 if none are named."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.results import Row, tell

SUITES = ["tests/crash", "tests/edge_agent/test_vision.py", "tests/edge_agent/test_outbox.py"]


def main(minutes: float) -> int:
    """0 if no run failed."""
    deadline, runs, failed = time.monotonic() + minutes * 60, 0, 0
    while time.monotonic() < deadline:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", *SUITES], check=False)
        runs, failed = runs + 1, failed + (done.returncode != 0)
    met = tell("soak", [Row("runs of the crash suites", runs, ""), Row("of which failed", failed, "", 0.0)])
    return 0 if met and runs else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))
