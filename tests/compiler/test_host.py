"""The child that runs the user's model: what it dies of is said, and it never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compiler.host import Host, signal_name
from skerry.errors import CompileError

_ASK = """
import sys
from pathlib import Path
from compiler.host import Host
from skerry.errors import CompileError

host = Host(Path(sys.argv[1]), {}, print, "original")
try:
    host._ask(host._start(), "no such job", {})
except CompileError:
    print("answers", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("number", "said"), [(6, "SIGABRT"), (11, "SIGSEGV"), (9, "SIGKILL, as when memory runs out"), (200, "unknown")]
)
def test_a_signal_has_a_name(number: int, said: str) -> None:
    assert signal_name(number) == said


def test_a_child_that_is_killed_says_so(tmp_path: Path) -> None:
    with Host(tmp_path, {}, print, "original") as host:
        process = host._start()
        process.kill()
        with pytest.raises(CompileError, match=r"ended in 'load' \(signal 9, SIGKILL, as when memory runs out"):
            host._ask(process, "load", {})


def children(of: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux ends a child with its parent")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ASK, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"answers\n"
        (child,) = children(parent.pid)
        os.kill(child, signal.SIGSTOP)  # it neither reads its standard input nor answers: it hangs
        parent.kill()

    deadline = time.monotonic() + 20.0
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    outlived = Path(f"/proc/{child}").exists()
    if outlived:
        os.kill(child, signal.SIGKILL)
    assert not outlived
