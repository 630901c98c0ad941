"""The agent's word to systemd: ready, alive, what it is doing, stopping. One datagram each; without systemd, nothing.

See sd_notify(3) and sd_watchdog_enabled(3). The watchdog is fed by whoever sees that frames move, not by a timer.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Speaks to the service manager that ``environ`` names.

    Attributes:
        watchdog_s: how long systemd waits for a sign of life before it kills; None if it does not wait.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ) if self._address else None
        self._said = ""

    @property
    def listened_to(self) -> bool:
        """Whether a service manager listens."""
        return bool(self._address)

    def ready(self) -> None:
        """The service works from now on; also ends a reload."""
        self._send("READY=1")

    def alive(self) -> None:
        """Frames move, or there are none to move."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def reloading(self, monotonic_s: float) -> None:
        """The configuration is read again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1e6)}")

    def status(self, words: str) -> None:
        """A line for ``systemctl status``, once for each change."""
        if words != self._said:
            self._said = words
            self._send(f"STATUS={words}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as line:
                line.connect(self._address)
                line.send(message.encode())
        except OSError as exc:
            _log.warning("systemd does not hear: %s", exc.strerror)


def _address(text: str) -> str:
    """A path, or a name in the abstract namespace ("@…" as systemd writes it)."""
    return f"\0{text[1:]}" if text.startswith("@") else text


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """None if there is no watchdog, or it is another process's."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid.isdecimal() and int(pid) != os.getpid()):
        return None
    return int(microseconds) / 1e6
