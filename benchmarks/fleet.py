"""A hub with several hundred devices: how long they take to join and to take a release, and what the hub needs for it.

The devices are light ones (tests/support/light.py): they speak the real wire, with a key each, and pretend to run
models. They share this machine's cores with the hub, and need most of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import Row, tell

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

DEVICES = 300
PERIOD_S = 5.0  # between two reports of a device: six times as often as the product's own
PACE = 5.0


def main() -> bool:
    """Always true but where a rollout does not end, or an event is lost: these figures have no bar yet."""
    rows: list[Row] = []
    for broker in ["embedded", *(["mosquitto 3.1.1"] if shutil.which("mosquitto") else [])]:
        with tempfile.TemporaryDirectory(prefix="skerry-fleet-") as folder:
            rows += _measure(Path(folder), broker)
    return tell("fleet", rows)


def _measure(folder: Path, broker: str) -> list[Row]:
    import tiny  # noqa: PLC0415 - lies with the tests
    from light import LightFleet  # noqa: PLC0415
    from live_hub import LiveHub, each_once, whole  # noqa: PLC0415

    from skerry.fleet.documents import Policy, RolloutIn  # noqa: PLC0415

    with LiveHub(folder, broker) as hub:
        idle = _memory_mib(hub.process.pid)
        started = time.monotonic()
        fleet = LightFleet(folder / "devices", hub.claim(DEVICES), DEVICES, period_s=PERIOD_S, pace=PACE)
        enrolled = time.monotonic() - started
        bundle, release = tiny.Tiny().pack(folder)
        for device in fleet.devices:
            device.versions[release] = 1
        with hub.client() as client:
            client.push(bundle, folder, lambda *_: None)
            started = time.monotonic()
            with fleet:
                hub.wait("all are online", lambda: sum(d.online for d in client.devices()) == DEVICES, 300)
                online = time.monotonic() - started
                started, sent = time.monotonic(), fleet.messages
                policy = Policy(soak_s=2, clock_s=600, offline_after_s=60)
                waves = ["10%", "100%"]
                made = client.draft(RolloutIn(release="tiny@1", canary="3", waves=waves, policy=policy))
                client.act(made.id, "start")
                done = hub.wait("the rollout is done", lambda: _ended(client, made.id), 600)
                rollout, messages = time.monotonic() - started, fleet.messages - sent
                busy = _memory_mib(hub.process.pid)
            fault = fleet.fault()
        lost = [n for n in each_once(hub.events()).values() if not whole(n)]
    failed = float(done.state != "done" or fault is not None or bool(lost))
    note = f"{DEVICES} devices, {broker}"
    return [
        Row("enrolled", enrolled, "s", note=f"{note}; {DEVICES / enrolled:.0f} a second, 8 at a time"),
        Row("connected, born and online", online, "s", note=note),
        Row("a rollout of 3, 10 %, 100 %", rollout, "s", note=f"{note}; {messages / rollout:.0f} messages a second"),
        Row("hub and broker, idle", idle, "MiB", note=broker),
        Row("hub and broker, in the rollout", busy, "MiB", note=note),
        Row("not done, or an event lost", failed, "", 0.0, note=note),
    ]


def _ended(client: Any, number: int) -> Any:
    seen = client.rollout(number)
    return seen if seen.state in ("done", "taken back", "asking") else None


def _memory_mib(root: int) -> float:
    """Proportional set size of a process and its children."""
    children = subprocess.run(["pgrep", "-P", str(root)], capture_output=True, text=True, check=False).stdout.split()
    total = 0
    for pid in [root, *map(int, children)]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
