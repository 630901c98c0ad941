"""A real Mosquitto that a test may kill, and somebody who listens there and misses nothing."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import needs
import paho.mqtt.client as paho
from typing_extensions import Self

_CONFIG = """\
user root
listener {port} 127.0.0.1
allow_anonymous {anonymous}
{passwords}
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
"""


class Mosquitto:
    """The broker. Use as a context manager. What it keeps for a listener survives its death."""

    def __init__(self, folder: Path, user: str | None = None, password: str = "") -> None:
        needs.program("mosquitto", "mosquitto")
        folder.mkdir()
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        passwords = ""
        if user is not None:
            subprocess.run(["mosquitto_passwd", "-b", "-c", str(folder / "passwd"), user, password], check=True)
            passwords = f"password_file {folder}/passwd"
        text = _CONFIG.format(
            port=self.port, folder=folder, passwords=passwords, anonymous="true" if user is None else "false"
        )
        (folder / "conf").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with (self._folder / "said.txt").open("ab") as said:
            self._process = subprocess.Popen(["mosquitto", "-c", str(self._folder / "conf")], stdout=said, stderr=said)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Listener:
    """Hears everything below a topic. Use as a context manager.

    Attributes:
        heard: topic, payload and whether it was retained, of each message in order.
    """

    def __init__(self, port: int, below: str = "#", user: str | None = None, password: str | None = None) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self.subscribed = False
        client = self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False, protocol=paho.MQTTv311
        )
        client.reconnect_delay_set(1, 1)
        if user is not None:
            client.username_pw_set(user, password)

        def connected(*_: object) -> None:
            client.subscribe(below, 1)

        def subscribed(*_: object) -> None:
            self.subscribed = True

        def lost(*_: object) -> None:
            self.subscribed = False

        client.on_connect, client.on_subscribe, client.on_disconnect = connected, subscribed, lost
        client.on_message = lambda _, __, m: self.heard.append((m.topic, m.payload, m.retain))
        client.connect_async("127.0.0.1", port)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self.until("it listens", lambda: self.subscribed)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def until(self, what: str, reached: Callable[[], object], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, f"not in time: {what}; {self.heard[-5:]}"
            time.sleep(0.02)

    def of(self, topic: str) -> list[bytes]:
        """What was published at a topic, or below it."""
        return [payload for name, payload, _ in self.heard if name == topic or name.startswith(topic + "/")]
