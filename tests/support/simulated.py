"""A hub without its network, and devices that speak to it, on a clock that only moves when told.

The hub runs in a forked child: it takes messages, ticks, and gives back what it would publish. The test may kill it
anywhere; whoever comes after it reads the same rows. Devices live in the test and repeat what was not answered.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_hub import tables
from cloud_hub.devices import desired_of
from cloud_hub.identity import TENANT
from cloud_hub.inbound import Inbound, Outgoing
from cloud_hub.registry import Release
from cloud_hub.rollouts.judge import Policy
from cloud_hub.rollouts.service import Rollouts
from cloud_hub.store import Store
from skerry.clock import Trust, Utc
from skerry.messages import (
    ACK,
    BIRTH,
    EVENTS,
    REPORTED,
    Ack,
    AppReport,
    Batch,
    Birth,
    Health,
    Reported,
    Sent,
    desired_path,
    open_desired,
    pack,
    seal_desired,
    unpack,
)
from skerry.wire import Desired, ProofReport

KEY = ec.derive_private_key(0x5EA, ec.SECP256R1())
START_MS = 1_795_500_000_000
STEP_MS = 2000
RELEASES = {version: f"{version:x}" * 64 for version in range(1, 10)}


class SteppedClock:
    """Stands still until somebody sets ``now_ms``."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def utc(self) -> Utc:
        return Utc(self.now_ms, Trust.RTC)

    def monotonic(self) -> float:
        return (self.now_ms - START_MS) / 1000


# --- the hub, in a child -------------------------------------------------------------------------------------------


class KilledHub(Exception):
    """The child is dead; what was asked of it may or may not have been done."""


class SimulatedHub:
    """The child, from outside. ``kill_at`` counts named points: the child kills itself at that one (0: never)."""

    def __init__(self, path: Path, kill_at: int = 0, *, named: str | None = None) -> None:
        self._path, self._kill_at, self._named = path, kill_at, named
        self.points: list[str] = []
        self._start()

    def _start(self) -> None:
        here, there = os.pipe(), os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(here[1])
            os.close(there[0])
            _child(self._path, here[0], there[1], self._kill_at)
            os._exit(0)
        os.close(here[0])
        os.close(there[1])
        self._out, self._in = here[1], there[0]

    def call(self, what: str, now_ms: int, *arguments: Any) -> Any:
        """Asks the child. Raises `KilledHub` if it died of it; the next call is answered by a new one."""
        _write(self._out, pickle.dumps((what, now_ms, arguments)))
        raw = _read(self._in)
        if raw is None:
            self.close()
            self._kill_at = 0  # once
            self._start()
            raise KilledHub
        answer, points = pickle.loads(raw)
        self.points += points
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, what: str, now_ms: int, *arguments: Any) -> Any:
        """Asks again until it is answered."""
        while True:
            try:
                return self.call(what, now_ms, *arguments)
            except KilledHub:
                continue

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _child(path: Path, source: int, sink: int, kill_at: int) -> None:
    clock, points = SteppedClock(), []
    passed = 0

    def reached(point: str) -> None:
        nonlocal passed
        passed += 1
        points.append(point)
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    numbers = iter(range(10**9))
    with Store(path, tables.TABLES) as store:

        def wish(row: Any) -> Outgoing | None:
            if not row.desired_version:
                return None
            return Outgoing(desired_path(TENANT, row.id), seal_desired(desired_of(row), KEY))

        def behind() -> list[Outgoing]:
            rows = store.read(lambda c: c.execute(tables.devices.select()).all())
            return [out for row in rows if row.desired_version > row.seen_version and (out := wish(row))]

        inbound = Inbound(store, clock, "hub", lambda: str(next(numbers)), wish, reached)
        rollouts = Rollouts(store, clock, reached)

        def tick() -> tuple[list[Outgoing], dict[int, str]]:
            while rollouts.tick():  # until nothing more follows: a kill in between then costs no time of the clock
                pass
            return behind(), {int(r.id): r.state.value for r, _ in rollouts.all()}

        calls = {
            "take": inbound.take,
            "tick": tick,
            "draft": lambda release, policy, waves: rollouts.draft(
                release, store.read(lambda c: c.execute(tables.devices.select()).all()), "1", waves, policy
            ),
            "act": rollouts.act,
            "view": rollouts.view,
            "rows": lambda: store.read(lambda c: [tuple(row) for row in c.execute(tables.events.select())]),
            "join": lambda devices: store.write(lambda c: c.execute(tables.devices.insert(), devices)) and None,
        }
        while (raw := _read(source)) is not None:
            what, clock.now_ms, arguments = pickle.loads(raw)
            points.clear()
            try:
                answer = calls[what](*arguments)
            except Exception as exc:  # noqa: BLE001 - it is the test's
                answer = exc
            _write(sink, pickle.dumps((answer, points)))
        os._exit(0)


def _write(fd: int, raw: bytes) -> None:
    data = struct.pack(">I", len(raw)) + raw
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            return


def _read(fd: int) -> bytes | None:
    head = _exactly(fd, 4)
    return None if head is None else _exactly(fd, struct.unpack(">I", head)[0])


def _exactly(fd: int, size: int) -> bytes | None:
    raw = b""
    while len(raw) < size:
        more = os.read(fd, size - len(raw))
        if not more:
            return None
        raw += more
    return raw


# --- devices, in the test ------------------------------------------------------------------------------------------


@dataclass
class SimulatedDevice:
    """Does what a device does with a wish, in its own time.

    Attributes:
        refuses: why its proof refuses a release, by version.
        returns: why its probation returns from a release, by version.
        away: periods (seconds since the start) in which it is off the network.
    """

    id: str
    random: random.Random
    refuses: dict[int, str] = field(default_factory=dict)
    returns: dict[int, str] = field(default_factory=dict)
    away: list[tuple[float, float]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    pace: float = 1.0
    key: ec.EllipticCurvePublicKey = field(default_factory=KEY.public_key)
    versions: dict[str, int] = field(default_factory=lambda: {r: v for v, r in RELEASES.items()})

    def __post_init__(self) -> None:
        self.desired: Desired | None = None
        self.active: str | None = None
        self.good: str | None = None
        self.target: str | None = None
        self.state = "idle"
        self.kept_ms = 0
        self.due_ms = 0
        self.rejected: dict[str, str] = {}
        self.seq = 0
        self.acked = 0
        self.pending: list[bytes] = []

    def here(self, now_ms: int) -> bool:
        second = (now_ms - START_MS) / 1000
        return not any(start <= second < end for start, end in self.away)

    def live(self, now_ms: int) -> None:
        """Goes on with its update, if its time has come."""
        wanted = self.desired.apps["main"].release if self.desired and "main" in self.desired.apps else None
        if wanted and self.state == "idle" and wanted != self.active and wanted not in self.rejected:
            self.state, self.target, self.due_ms = "proving", wanted, now_ms + self._in(2000, 9000)
        elif self.state == "proving" and now_ms >= self.due_ms:
            self._proved(now_ms)
        elif self.state == "probation" and now_ms >= self.due_ms:
            self._watched(now_ms)
        if self.random.random() < 0.3:
            self.seq += 1
            self.pending.append(b'{"kind":"seen","n":%d}' % self.seq)

    def _in(self, least_ms: int, most_ms: int) -> int:
        return int(self.random.randrange(least_ms, most_ms) / self.pace)

    def _proved(self, now_ms: int) -> None:
        why = self.refuses.get(self.versions.get(self.target or ""))
        if why is not None:
            self.rejected[self.target] = why
            self.state, self.target = "idle", None
            return
        self.active, self.state, self.due_ms = self.target, "probation", now_ms + self._in(3000, 6000)
        self.ran.append(self.active)

    def _watched(self, now_ms: int) -> None:
        why = self.returns.get(self.versions.get(self.target or ""))
        if why is not None:
            self.rejected[self.target] = why
            self.active = self.good
        else:
            self.good = self.active
        self.kept_ms = now_ms
        self.state, self.target = "idle", None

    def says(self, now_ms: int, *, born: bool) -> list[tuple[str, bytes]]:
        """Its messages of this moment."""
        bodies: list[tuple[Any, msgspec.Struct]] = []
        if born:
            seen = self.desired.version if self.desired else 0
            birth = Birth(agent="s", run="r", streams=[self.id], seen_version=seen, arch="x", cpu=[], backends=[])
            bodies.append((BIRTH, birth))
        bodies.append((REPORTED, self._report(now_ms)))
        if self.pending:
            batch = Batch(
                stream=self.id, first_seq=self.acked + 1, lost=0, events=[msgspec.Raw(e) for e in self.pending]
            )
            bodies.append((EVENTS, batch))
        sent = Sent(utc_ms=now_ms, mono_ms=now_ms - START_MS, boot="b", trust=Trust.RTC)
        return [(topic.path(TENANT, self.id), pack(topic.kind, body, sent, "i")) for topic, body in bodies]

    def _report(self, now_ms: int) -> Reported:
        proof, health = [], None
        if self.active is not None:
            proof = [
                ProofReport(
                    release=self.active, variant="v", backend="b", provider="p", version="1", threads=1,
                    input_sqnr_db=60.0, sqnr_db=40.0, same=16, decided=16, time_ms=5.0, time_ratio=None, peak_mib=90.0,
                )
            ]  # fmt: skip
            kept_s = (now_ms - self.kept_ms) / 1000 if self.state == "idle" else 0.0
            health = Health(release=self.active, kept_s=kept_s, captured=9, processed=9, superseded=0, failed=0)
        app = AppReport(
            state=self.state, attempt=0, target=self.target, active=self.active, good=self.good, variant="v",
            proof=proof, health=health,
        )  # fmt: skip
        seen = self.desired.version if self.desired else 0
        return Reported(seen_version=seen, apps={"main": app}, rejected=dict(self.rejected))

    def hears(self, topic: str, payload: bytes) -> None:
        if topic == desired_path(TENANT, self.id):
            desired = open_desired(payload, self.key, self.id)
            assert self.desired is None or desired.version >= self.desired.version, "a version fell"
            if self.desired is None or desired.version > self.desired.version:
                self.desired = desired
                for release in desired.cleared:
                    self.rejected.pop(release, None)
        elif ACK.device(TENANT, topic):
            ack = unpack("ack", Ack, payload)[1]
            assert ack.last_seq <= self.seq
            if ack.last_seq > self.acked:
                self.pending = self.pending[ack.last_seq - self.acked :]
                self.acked = ack.last_seq


def rows(devices: list[SimulatedDevice]) -> list[dict[str, Any]]:
    """The devices, as if they had enrolled."""
    return [
        {
            "id": d.id,
            "name": d.id[:4],
            "group": "g",
            "key": d.id,
            "certificate": "",
            "enrolled_ms": START_MS + n,
            "online": True,
            "seen_version": 0,
            "desired_version": 0,
            "apps": b"{}",
            "cleared": b"[]",
        }
        for n, d in enumerate(devices)
    ]


def release(number: int) -> Release:
    return Release(RELEASES[number], "net", number, "s", "k", START_MS)


class Fleet:
    """Hub and devices, a step of the clock at a time."""

    def __init__(self, hub: SimulatedHub, devices: list[SimulatedDevice]) -> None:
        self.hub, self.devices = hub, devices
        self.now_ms = START_MS
        self._born: set[str] = set()
        hub.ask("join", self.now_ms, rows(devices))

    def step(self) -> None:
        self.now_ms += STEP_MS
        says = []
        for device in self.devices:
            device.live(self.now_ms)
            if not device.here(self.now_ms):
                self._born.discard(device.id)
                continue
            says += device.says(self.now_ms, born=device.id not in self._born)
            self._born.add(device.id)
        self._deliver(self.hub.ask("take", self.now_ms, says))
        messages, self.states = self.hub.ask("tick", self.now_ms)
        self._deliver(messages)

    def _deliver(self, messages: list[Outgoing]) -> None:
        for message in messages:
            for device in self.devices:
                if f"/{device.id}/" in message.topic and device.here(self.now_ms):
                    device.hears(message.topic, message.payload)

    def roll_out(
        self, number: int, policy: Policy, waves: list[str], until: tuple[str, ...], seconds: int
    ) -> list[Any]:
        """Starts a rollout, and goes on until it is in one of the states; its decision log."""
        rollout = self.hub.ask("draft", self.now_ms, release(number), policy, waves)
        try:
            self.hub.call("act", self.now_ms, rollout, "start", "me")
        except KilledHub:
            if self.hub.ask("view", self.now_ms, rollout).rollout.state == "draft":
                self.hub.ask("act", self.now_ms, rollout, "start", "me")
        for _ in range(seconds * 1000 // STEP_MS):
            self.step()
            if self.states[rollout] in until:
                return self.hub.ask("view", self.now_ms, rollout).log
        view = self.hub.ask("view", self.now_ms, rollout)
        raise AssertionError(f"not {until} within {seconds} s: {view.rollout.state} {view.verdict} {view.standing}")
