"""A real hub in its own processes, with its own broker or with Mosquitto."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import needs
from typing_extensions import Self

from skerry.errors import SkerryError
from skerry.fleet.client import Client, load_profile
from skerry.fleet.documents import Event

T = TypeVar("T")
SKERRY = [sys.executable, "-m", "skerry"]
BROKERS = ("embedded", "mosquitto 3.1.1", "mosquitto 5")


class LiveHub:
    """`skerry hub serve` on a folder. Use as a context manager.

    Args:
        broker: one of `BROKERS`.
        prefix: put before each command, to run it on another host.
        names: what devices reach it by.
        operator: what the test reaches it by.
    """

    def __init__(
        self,
        folder: Path,
        broker: str = "embedded",
        *,
        prefix: Sequence[str] = (),
        names: Sequence[str] = ("localhost",),
        operator: str = "localhost",
    ) -> None:
        self.folder, self.data, self.said = folder, folder / "hub", folder / "hub.txt"
        self._broker, self._prefix, self._names, self._operator = broker, list(prefix), list(names), operator
        self.port, self.broker_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.mosquitto: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._broker != "embedded":
            needs.program("mosquitto", "mosquitto")
            named = [part for name in self._names for part in ("--name", name)]
            config = ["hub", "broker-config", "--data", str(self.data), "--port", str(self.broker_port), *named]
            subprocess.run([*SKERRY, *config], check=True, capture_output=True)
            self.start_mosquitto()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.stop_mosquitto()

    def start_mosquitto(self) -> None:
        with (self.folder / "mosquitto.txt").open("ab") as said:
            self.mosquitto = subprocess.Popen(
                [*self._prefix, "mosquitto", "-c", str(self.data / "mosquitto" / "mosquitto.conf")],
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def stop_mosquitto(self) -> None:
        if self.mosquitto is not None:
            self.mosquitto.kill()
            self.mosquitto.wait(10)
            self.mosquitto = None

    def kill_broker(self) -> None:
        """SIGKILL for the broker; it is there again soon."""
        if self._broker != "embedded":
            self.stop_mosquitto()
            self.start_mosquitto()
            return
        assert self.process is not None
        find = ["pgrep", "-P", str(self.process.pid), "-f", "cloud_hub.broker"]
        found = self.wait("its broker", lambda: subprocess.run(find, capture_output=True, check=False).stdout, 20)
        os.kill(int(found.split()[0]), signal.SIGKILL)

    def start(self, *, wait: bool = True, **environment: str) -> None:
        arguments = ["hub", "serve", "--data", str(self.data), "--port", str(self.port)]
        arguments += [part for name in [*self._names, self._operator] for part in ("--name", name)]
        if self._broker == "embedded":
            arguments += ["--mqtt-port", str(self.broker_port)]
        else:
            arguments += ["--broker", f"mqtts://{self._names[0]}:{self.broker_port}", "--mqtt", self._broker.split()[1]]
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [*self._prefix, *SKERRY, *arguments],
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config"), **environment},
            )
        if wait:
            self.wait("the hub is up", self._is_up, 60)

    def _is_up(self) -> bool:
        try:
            with self.client() as client:
                return client.health().broker
        except SkerryError:
            return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def client(self) -> Client:
        profile = load_profile(self.data / "operator.json")
        return Client(msgspec.structs.replace(profile, url=f"https://{self._operator}:{self.port}"))

    def claim(self, uses: int = 100, trust: Sequence[str] = (), group: str = "default") -> str:
        with self.client() as client:
            return str(client.create_claim(group, uses, 24, trust))

    def events(self) -> list[Event]:
        """Everything that devices sent, in the order in which it came."""
        found: list[Event] = []
        with self.client() as client:
            while page := client.events(after=found[-1].id if found else 0, limit=10_000).events:
                found += page
        return found

    def output(self) -> str:
        return self.said.read_text()

    def wait(self, what: str, look: Callable[[], T], timeout_s: float = 60.0) -> T:
        """Polls until ``look`` gives something true."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within {timeout_s} s: {what}\n{self.output()[-3000:]}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def each_once(events: Sequence[Event]) -> dict[str, list[int]]:
    """The numbers of each stream; fails if one came twice."""
    streams: dict[str, list[int]] = {}
    for event in events:
        streams.setdefault(event.stream, []).append(event.seq)
    for stream, numbers in streams.items():
        assert len(numbers) == len(set(numbers)), f"an event of {stream} is there twice"
    return {stream: sorted(numbers) for stream, numbers in streams.items()}


def whole(numbers: Sequence[int]) -> bool:
    """Whether no number is missing, from 1 on."""
    return list(numbers) == list(range(1, len(numbers) + 1))
