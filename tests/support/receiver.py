"""A web server that takes events, or does not: a process of its own, that can be slow, refuse and disappear.

``python receiver.py FOLDER PORT``. For each request it reads ``FOLDER/mood`` (JSON: a status, seconds to wait, and the
numbers of events that it refuses for good), and writes what came into ``FOLDER/got.jsonl``.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import Self


class Receiver:
    """The process, from outside. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?door=1"
        self.mood()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, str(self.folder), str(self.port)])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def until_up(self) -> None:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("it does not come up")

    def mood(self, status: int = 200, wait_s: float = 0.0, poison: tuple[int, ...] = (), **headers: str) -> None:
        part = self.folder / "mood.part"
        part.write_text(json.dumps({"status": status, "wait_s": wait_s, "poison": poison, "headers": headers}))
        part.replace(self.folder / "mood")

    def got(self) -> list[dict[str, Any]]:
        """Every request that came whole, in order."""
        path = self.folder / "got.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def taken(self) -> list[int]:
        """The numbers of the events that were answered with 200."""
        return [json.loads(one["body"])["seq"] for one in self.got() if one["status"] == 200]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        folder = Path(sys.argv[1])
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        mood = json.loads((folder / "mood").read_text())
        time.sleep(mood["wait_s"])
        status = 422 if json.loads(body)["seq"] in mood["poison"] else mood["status"]
        line = {"path": self.path, "status": status, "headers": dict(self.headers), "body": body}
        with (folder / "got.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        answer = b"this is what it says"
        self.send_response(status)
        for name, value in mood["headers"].items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Silence."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), _Handler).serve_forever()
