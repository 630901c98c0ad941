"""A real RTSP server for tests: GStreamer's, in a process of its own under the system's Python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

_SYSTEM = "/usr/bin/python3"
_CHILD = Path(__file__).with_name("rtsp_child.py")


def why_not() -> str | None:
    """Why there can be no server here, or None."""
    try:
        script = "import gi, numpy; gi.require_version('GstRtspServer', '1.0')"
        done = subprocess.run([_SYSTEM, "-c", script], capture_output=True, check=False)
    except OSError as exc:
        return str(exc)
    return None if done.returncode == 0 else "GStreamer's RTSP server is not here: scripts/install_test_needs.sh"


class RtspServer:
    """Serves ``/live``. Use as a context manager.

    Args:
        key: pictures between key frames.
        static: the scene does not move; the sensor's noise does.
    """

    def __init__(
        self,
        *,
        width: int = 320,
        height: int = 240,
        rate: int = 25,
        codec: str = "h264",
        key: int = 25,
        static: bool = False,
        user: str = "",
        password: str = "",
        address: str = "127.0.0.1",
        port: int = 0,
        prefix: tuple[str, ...] = (),
    ) -> None:
        options = {
            "width": width,
            "height": height,
            "rate": rate,
            "codec": codec,
            "key": key,
            "static": static,
            "user": user,
            "password": password,
            "address": address,
            "port": port,
        }
        self._address = address
        self._command = [*prefix, _SYSTEM, str(_CHILD), json.dumps(options)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def url(self) -> str:
        return f"rtsp://{self._address}:{self.port}/live"

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, command: str) -> None:
        """ "freeze", "thaw", "stop" or "go"."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
