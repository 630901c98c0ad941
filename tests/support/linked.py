"""A device with the real link and the real outbox, and no vision: a process of its own for tests of the network.

``python linked.py OPTIONS`` (JSON). It writes ``status.json`` ten times a second; SIGUSR1 ends the events.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from typing_extensions import Self

from edge_agent.config import LinkConfig
from edge_agent.identity import enrol
from edge_agent.lanes import Lanes
from edge_agent.link import Link, Tools
from skerry.claim import Claim
from skerry.clock import SystemClock, Trust, boot_id, new_id
from skerry.disk import Disk
from skerry.messages import Birth, Reported
from skerry.wire import Answer, Desired, Seen, encode


class Linked:
    """The process, from outside. Use as a context manager."""

    def __init__(self, folder: Path, token: str, *, prefix: Sequence[str] = (), **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._prefix = list(prefix)
        self._options = {"data": str(folder), "token": token, "name": folder.name, **options}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def start(self, **options: Any) -> None:
        (self.folder / "status.json").unlink(missing_ok=True)
        with (self.folder / "said.txt").open("ab") as said:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, __file__, json.dumps({**self._options, **options})],
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end_events(self) -> None:
        self.wait("it runs, and hears signals", bool)
        self.process.send_signal(signal.SIGUSR1)

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def wait(self, what: str, reached: Callable[[dict[str, Any]], Any], timeout_s: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status and reached(status):
                return status
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"it ended: {(self.folder / 'said.txt').read_text()[-2000:]}")
            time.sleep(0.05)
        raise AssertionError(
            f"not within {timeout_s} s: {what}; {self.status()}\n{(self.folder / 'said.txt').read_text()[-1500:]}"
        )


def event(number: int, clock: SystemClock) -> bytes:
    """What a camera's event looks like; its frame is its number."""
    return encode(
        Seen(
            source="linked",
            frame=number,
            release="0" * 64,
            answers=[Answer("street sign", 0.71), Answer("traffic light", 0.22)],
            utc_ms=clock.utc().ms,
            trust=Trust.RTC,
            mono_ms=int(clock.monotonic() * 1000),
        )
    )


async def run(options: dict[str, Any]) -> None:
    folder, disk, clock = Path(options["data"]), Disk(), SystemClock()
    me = enrol(Claim.parse(options["token"]), options["name"], folder / "identity", disk)
    lanes = Lanes(folder / "outbox", disk, options.get("max_mib", 64) << 20, new_id)
    number = lanes.live.accepted
    for _ in range(options.get("waiting", 0)):
        number += 1
        lanes.append(event(number, clock))
    lanes.sync()
    seen: list[Desired] = []
    if options.get("seen_version"):
        seen.append(Desired(version=options["seen_version"], apps={}, device=me.device))
    version = lambda: max((d.version for d in seen), default=0)  # noqa: E731
    run_id = new_id()
    link = Link(
        Tools(
            identity=me,
            lanes=lanes,
            report=lambda: Reported(seen_version=version(), apps={}, rejected={}),
            birth=lambda streams: Birth(
                agent="test", run=run_id, streams=streams, seen_version=version(), arch="x", cpu=[], backends=[]
            ),
            wish=seen.append,
            seen_version=version,
            wish_file=folder / "desired.signed",
            config=LinkConfig(**options.get("link", {})),
            sync_s=0.05,
            disk=disk,
            clock=clock,
            uniform=random.Random(os.getpid()).uniform,
            new_id=new_id,
            boot=boot_id(),
            run=run_id,
        )
    )
    link.load_wish()
    started = clock.monotonic()
    connected_s: float | None = None
    emitting = True

    def end(*_: object) -> None:
        nonlocal emitting
        emitting = False

    signal.signal(signal.SIGUSR1, end)

    async def emit() -> None:
        nonlocal number
        while True:
            await clock.wait(1.0 / options.get("rate", 10))
            if emitting:
                number += 1
                lanes.append(event(number, clock))
                link.wake()

    async def tell() -> None:
        nonlocal connected_s
        while True:
            if connected_s is None and link.connected:
                connected_s = clock.monotonic() - started
            status = {
                "device": me.device,
                "connected": link.connected,
                "connected_s": connected_s,
                "why": link.why,
                "waiting": lanes.waiting,
                "emitted": number,
                "emitting": emitting,
                "streams": lanes.streams,
                "refused": link.refused,
                "version": version(),
            }
            (folder / "status.part").write_text(json.dumps(status))
            (folder / "status.part").replace(folder / "status.json")
            await clock.wait(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.run)
        tasks.start_soon(emit)
        tasks.start_soon(tell)


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    anyio.run(run, json.loads(sys.argv[1]))
