"""The small parent: keeps the agent alive where no systemd does. Imports next to nothing, so that it weighs nothing.

It forks the agent and waits. An agent that ends on its own terms (exit code below `FIRST_CRASH`) ends the parent; one
that crashes or is killed is started again, at once the first time, then after a growing pause. If the parent itself is
killed, the kernel takes the agent along: nobody is left who would start it again, but whoever started the parent.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

from skerry.clock import SystemClock

FIRST_CRASH = 64  # exit codes below are decisions: 0 done, 1 and 2 errors that a restart would repeat
_CRASHED = 70
_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 60.0  # an agent that lived this long starts over with no pause
_PR_SET_PDEATHSIG = 1
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)


def keep_alive(agent: Callable[[bool], int]) -> int:
    """Runs ``agent`` in a child, again and again until it ends on its own terms or is told to.

    Args:
        agent: called with whether this is its first run; returns its exit code.

    Returns:
        The last agent's exit code.
    """
    clock, terminal = SystemClock(), os.isatty(0)  # asked now: a terminal that hung up is none any more
    crashes, first = 0, True
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    while True:
        started = clock.monotonic()
        child = _fork(functools.partial(agent, first))
        first = False
        told, status = _wait(child, terminal=terminal)
        code = os.waitstatus_to_exitcode(status)
        if 0 <= code < FIRST_CRASH or told:
            return max(code, 0)
        crashes = 0 if clock.monotonic() - started > _STEADY_S else crashes
        pause = _PAUSES_S[min(crashes, len(_PAUSES_S) - 1)]
        crashes += 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        sys.stderr.write(f"the agent {how}; starting it again{f' in {pause:g} s' if pause else ''}\n")
        if pause and signal.sigtimedwait(_WATCHED[:2], pause) is not None:
            return 0


def _fork(agent: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = _CRASHED
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        code = agent()
    except BaseException:  # noqa: BLE001 - the child ends here whatever it is
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, *, terminal: bool) -> tuple[bool, int]:
    """Whether the agent was told to stop, and how it ended. Passes signals on; the second one is the kernel's.

    SIGHUP makes the agent read its configuration again; from a ``terminal`` it says that the terminal is gone, and the
    agent goes with it.
    """
    told = 0
    while True:
        arrived = signal.sigwait(_WATCHED)
        if arrived == signal.SIGCHLD:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return told > 0, status
            continue
        if arrived == signal.SIGHUP and not terminal:
            os.kill(child, arrived)
            continue
        arrived = signal.SIGTERM if arrived == signal.SIGHUP else arrived
        told += 1
        os.kill(child, arrived if told == 1 else signal.SIGKILL)
