"""The device's end of MQTT: says what it is, sends what it saw, and takes in what it should run.

Nothing here is lost when the network is: events wait in `Lanes` until the hub has acknowledged them, the wish that was
believed last lies on the disk, and all else is said again. Vision does not notice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from edge_agent.config import LinkConfig
from edge_agent.identity import Identity
from edge_agent.lanes import Lanes
from edge_agent.outbox import Outbox
from edge_agent.report import same
from edge_agent.segments import Batch as Waiting
from skerry import mqtt
from skerry.backoff import Backoff
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.errors import FormatError, SkerryError, StorageError
from skerry.messages import (
    ACK,
    BIRTH,
    DEATH,
    EVENTS,
    MAX_BATCH,
    REBIRTH,
    REPORTED,
    Ack,
    Batch,
    Birth,
    Death,
    HubStatus,
    Rebirth,
    Reported,
    Sent,
    Topic,
    desired_path,
    hub_status,
    open_desired,
    pack,
    unpack,
)
from skerry.wire import Desired

_log = logging.getLogger(__name__)

_LOOK_S = 0.25  # how often a change is looked for
_CURSOR_S = 5.0
_TIMEOUT_S = 3.0  # for the broker to answer; half the keepalive, if that is more
_SMALLEST_BATCH = 2 << 10
_QUICK_S, _SLOW_S = 0.5, 2.0  # an acknowledgement that takes less, or more, makes the next batch larger, or smaller


@dataclass(frozen=True)
class Tools:
    """What the link works with; the composition root makes it.

    Attributes:
        report: what the device is, now.
        birth: says who it is, for the streams that it has.
        wish: hears a wish that was believed.
        seen_version: of the newest wish that was acted on.
        wish_file: where the wish that was believed last lies, as it came.
        uniform: a random number between two.
    """

    identity: Identity
    lanes: Lanes
    report: Callable[[], Reported]
    birth: Callable[[list[str]], Birth]
    wish: Callable[[Desired], None]
    seen_version: Callable[[], int]
    wish_file: Path
    config: LinkConfig
    sync_s: float
    disk: Disk
    clock: Clock
    uniform: Callable[[float, float], float]
    new_id: Callable[[], str]
    boot: str
    run: str


class Link:
    """Keeps the device connected. `run` never returns.

    Attributes:
        device: its id.
        hub: the hub's address.
        connected: whether it is, now.
        why: why it is not; None while it is.
        refused: wishes that were not believed.
    """

    def __init__(self, tools: Tools) -> None:
        self._t = tools
        self._tenant, self.device = tools.identity.tenant, tools.identity.device
        self.hub = tools.identity.hub.url
        self._context = mqtt.tls(tools.identity.ca, tools.identity.certificate, tools.identity.key_file)
        self._backoff = Backoff(1.0, tools.config.longest_pause_s, tools.uniform)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dirty, self._accepted = asyncio.Event(), anyio.Event()
        self._acks: dict[str, _Acks] = {}
        self._hub_run: str | None = None
        self._complained: set[str] = set()
        self._version = 0
        self.connected = False
        self.why: str | None = "not yet"
        self.refused = 0

    def wake(self) -> None:
        """There are events to accept. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._dirty.set)

    def load_wish(self) -> None:
        """Believes again what was believed before this process started."""
        try:
            raw = self._t.wish_file.read_bytes()
        except FileNotFoundError:
            return
        try:
            desired = open_desired(raw, self._t.identity.desired_key, self.device)
        except SkerryError as exc:
            _log.error("%s: %s", self._t.wish_file, exc)
            return
        self._version = desired.version
        self._t.wish(desired)

    async def run(self) -> None:
        """Accepts events, and keeps the connection up."""
        self._loop = asyncio.get_running_loop()
        self._dirty.set()  # of an earlier run
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._accept, name="accept")
            tasks.start_soon(self._keep_connected, name="link")

    # Events are accepted, hub or no hub

    async def _accept(self) -> None:
        failing = False
        while True:
            await self._dirty.wait()
            await self._t.clock.wait(self._t.sync_s)  # let a group gather: one sync serves them all
            self._dirty.clear()
            try:
                await anyio.to_thread.run_sync(self._t.lanes.sync)
            except StorageError as exc:
                if not failing:
                    _log.error("events wait for the disk: %s", exc)
                failing = True
                await self._t.clock.wait(1.0)
                self._dirty.set()
                continue
            failing = False
            self._accepted.set()
            self._accepted = anyio.Event()

    # The connection

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._connected()
            except (mqtt.LinkLost, OSError, SkerryError) as exc:
                if self.connected or self.why is None or self.why == "not yet":
                    _log.warning("the hub is out of reach, events wait: %s", exc)
                self.why = str(exc) or type(exc).__name__
            self.connected = False
            await self._t.clock.wait(self._backoff.pause_s())

    async def _connected(self) -> None:
        """Serves one connection; raises what ends it."""
        await anyio.to_thread.run_sync(self._t.lanes.split)
        will = mqtt.Will(DEATH.path(self._tenant, self.device), self._pack(DEATH, self._death(in_order=False)))
        client = mqtt.client(
            self._t.identity.hub.enrolment.broker,
            self.device,
            self._context,
            will,
            keepalive_s=self._t.config.keepalive_s,
            timeout_s=max(_TIMEOUT_S, self._t.config.keepalive_s / 2),
        )
        async with client:
            down = ACK.path(self._tenant, self.device).removesuffix(ACK.kind)
            await client.subscribe([(f"{down}#", 0), (hub_status(self._tenant), 0)])
            await self._be_born(client)
            if self.why != "not yet":
                _log.info("the hub is reached again; %d events wait", self._t.lanes.waiting)
            self.connected, self.why = True, None
            try:
                await self._serve(client)
            except asyncio.CancelledError:
                with anyio.move_on_after(1.0, shield=True):  # an ordered stop: the hub need not wait for the will
                    await self._send(client, DEATH, self._death(in_order=True))
                raise

    async def _serve(self, client: mqtt.Client) -> None:
        ended: list[Exception] = []

        async def until_lost(task: Callable[[mqtt.Client], Any], scope: anyio.CancelScope) -> None:
            try:
                await task(client)
            except (mqtt.LinkLost, OSError, SkerryError) as exc:
                ended.append(exc)
                scope.cancel()

        async with anyio.create_task_group() as tasks:
            for task in (self._listen, self._report, self._send_live, self._send_backlog, self._tidy):
                tasks.start_soon(until_lost, task, tasks.cancel_scope)
        if ended:
            raise ended[0]

    async def _be_born(self, client: mqtt.Client) -> None:
        await self._send(client, BIRTH, self._t.birth(self._t.lanes.streams))
        await self._send(client, REPORTED, self._t.report())

    def _death(self, *, in_order: bool) -> Death:
        return Death(run=self._t.run, in_order=in_order)

    async def _send(self, client: mqtt.Client, topic: Topic[Any], body: msgspec.Struct) -> None:
        await client.publish(topic.path(self._tenant, self.device), self._pack(topic, body))

    def _pack(self, topic: Topic[Any], body: msgspec.Struct) -> bytes:
        utc = self._t.clock.utc()
        mono_ms = int(self._t.clock.monotonic() * 1000)
        sent = Sent(utc_ms=utc.ms, mono_ms=mono_ms, boot=self._t.boot, trust=utc.trust)
        return pack(topic.kind, body, sent, self._t.new_id())

    # What the hub says

    async def _listen(self, client: mqtt.Client) -> None:
        wish = desired_path(self._tenant, self.device)
        async for message in client.messages:
            path, raw = str(message.topic), message.payload
            try:
                if path == wish:
                    await self._take_wish(raw)
                elif ACK.device(self._tenant, path) is not None:
                    self._take_ack(unpack(ACK.kind, Ack, raw)[1])
                elif REBIRTH.device(self._tenant, path) is not None:
                    unpack(REBIRTH.kind, Rebirth, raw)
                    await self._be_born(client)
                elif path == hub_status(self._tenant):
                    await self._hub_is(client, unpack("status", HubStatus, raw)[1])
            except StorageError as exc:
                _log.error("a wish could not be kept, the hub says it again: %s", exc)
            except SkerryError as exc:
                self.refused += 1
                self._complain(path, exc)
            else:
                self._backoff.worked()

    def _complain(self, path: str, exc: SkerryError) -> None:
        """Logs it once for each kind: whoever repeats it must not fill the log."""
        kind = f"{path} {type(exc).__name__}"
        if kind not in self._complained:
            self._complained.add(kind)
            _log.error("not believed, at %s: %s (more of these are counted, not logged)", path, exc)

    async def _take_wish(self, raw: bytes) -> None:
        desired = open_desired(raw, self._t.identity.desired_key, self.device)
        newest = max(self._version, self._t.seen_version())
        if desired.version < newest:
            raise FormatError(f"a wish of version {desired.version}, but {newest} was seen: an old one, said again")
        if desired.version > self._version:
            await anyio.to_thread.run_sync(self._t.disk.replace, self._t.wish_file, raw)
            self._version = desired.version
            self._t.wish(desired)

    def _take_ack(self, ack: Ack) -> None:
        self._t.lanes.acknowledge(ack.stream, ack.last_seq)
        if (waiting := self._acks.get(ack.stream)) is not None:
            waiting.came(ack.last_seq)

    async def _hub_is(self, client: mqtt.Client, status: HubStatus) -> None:
        """A hub that started anew may have missed our birth; not every device says so in the same moment."""
        if status.online and status.run != self._hub_run:
            first, self._hub_run = self._hub_run is None, status.run
            if not first:
                await self._t.clock.wait(self._t.uniform(0.0, 1.0))
            await self._be_born(client)

    # What the hub is told

    async def _report(self, client: mqtt.Client) -> None:
        last, at = self._t.report(), self._t.clock.monotonic()
        while True:
            await self._t.clock.wait(_LOOK_S)
            now, report = self._t.clock.monotonic(), self._t.report()
            if now - at >= self._t.config.report_s or not same(last, report):
                await self._send(client, REPORTED, report)
                last, at = report, now

    async def _send_live(self, client: mqtt.Client) -> None:
        await self._send_events(client, lambda: self._t.lanes.live)

    async def _send_backlog(self, client: mqtt.Client) -> None:
        await self._send_events(client, lambda: self._t.lanes.backlog)

    async def _send_events(self, client: mqtt.Client, choose: Callable[[], Outbox | None]) -> None:
        """One batch at a time, the next one when the hub has acknowledged it."""
        limit = _SMALLEST_BATCH * 4
        while True:
            more = self._accepted
            log = choose()
            batch = await anyio.to_thread.run_sync(log.read, limit) if log is not None else None
            if log is None or batch is None:
                with anyio.move_on_after(1.0):
                    await more.wait()
                continue
            started = self._t.clock.monotonic()
            if await self._send_batch(client, log, batch):
                limit = _next_limit(limit, self._t.clock.monotonic() - started)
            else:
                limit = _SMALLEST_BATCH

    async def _send_batch(self, client: mqtt.Client, log: Outbox, batch: Waiting) -> bool:
        """Whether the hub acknowledged it in time. If not, it is sent again: the hub knows what it has."""
        acks = self._acks.setdefault(log.stream, _Acks())
        body = Batch(
            stream=log.stream,
            first_seq=batch.first,
            lost=max(batch.lost, batch.first - 1 - acks.last) if acks.behind(batch) else batch.lost,
            events=[msgspec.Raw(event) for event in batch.events],
        )
        await self._send(client, EVENTS, body)
        with anyio.move_on_after(self._t.config.ack_s):
            while acks.last < batch.last:
                await acks.next()
                if acks.behind(batch):  # the hub has less than it acknowledged: its disk was restored
                    break
        if batch.lost and acks.last >= batch.last:
            _log.warning("%d events were lost before #%d: the outbox was full", batch.lost, batch.first)
            self._t.lanes.lost += batch.lost
        return acks.last >= batch.last

    async def _tidy(self, _: mqtt.Client) -> None:
        while True:
            await self._t.clock.wait(_CURSOR_S)
            await anyio.to_thread.run_sync(self._t.lanes.tidy)
            gone = set(self._acks) - set(self._t.lanes.streams)
            for stream in gone:
                del self._acks[stream]


class _Acks:
    """The newest acknowledgement of one stream, and who waits for the next one."""

    def __init__(self) -> None:
        self.last, self._known = 0, False
        self._event = anyio.Event()

    def came(self, last: int) -> None:
        self.last, self._known = last, True
        self._event.set()
        self._event = anyio.Event()

    async def next(self) -> None:
        await self._event.wait()

    def behind(self, batch: Waiting) -> bool:
        """Whether the hub misses events before this batch that are not here any more."""
        return self._known and self.last < batch.first - 1 - batch.lost


def _next_limit(limit: int, took_s: float) -> int:
    """Bytes of the next batch: so many that it takes a second or two, so that nothing on the link waits long for it."""
    if took_s < _QUICK_S:
        return min(limit * 2, MAX_BATCH)
    return max(limit // 2, _SMALLEST_BATCH) if took_s > _SLOW_S else limit
