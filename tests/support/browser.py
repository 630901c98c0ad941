"""A real browser on a page: Chromium by its debugging protocol, so that a page that never rests can be looked at."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import needs
from typing_extensions import Self
from websockets.sync.client import connect


class Browser:
    """One page. Use as a context manager."""

    def __init__(self, folder: Path, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self._folder, self._url, self._size, self._dark = folder / "chromium", url, (width, height), dark
        self._number = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                needs.program("chromium", "chromium"),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}",
                f"--window-size={self._size[0]},{self._size[1]}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self._port()
        self._socket = connect(self._page(port), max_size=None)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=self._url)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, timeout_s: float = 20.0) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} did not come true; {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def picture(self, file: Path) -> None:
        """Writes a screenshot."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _port(self) -> int:
        told = self._folder / "DevToolsActivePort"
        deadline = time.monotonic() + 30
        while not told.exists() or not told.read_text().strip():
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        return int(told.read_text().split()[0])

    def _page(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            return next(one["webSocketDebuggerUrl"] for one in json.load(answer) if one["type"] == "page")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(30))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
