"""The hub's end of MQTT: what comes goes to `Inbound` many at a time, wishes go out until devices have seen them."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import anyio.to_thread
import sqlalchemy as sa

from cloud_hub.devices import Row, desired_of
from cloud_hub.identity import HUB, TENANT, Authority
from cloud_hub.inbound import Inbound, Outgoing
from cloud_hub.store import Store
from cloud_hub.tables import devices
from skerry import mqtt
from skerry.backoff import Backoff
from skerry.claim import Broker
from skerry.clock import Clock
from skerry.errors import StorageError
from skerry.messages import HubStatus, Sent, desired_path, hub_status, pack, seal_desired

_log = logging.getLogger(__name__)

_TOGETHER = 256  # messages that one transaction takes in
_KEEPALIVE_S = 20
_TIMEOUT_S = 10.0
_RESEND_S = 10.0


class Wishes:
    """Which wishes are to go out: those that their devices have not seen.

    Level-triggered: only when each went out last is remembered, so that a hub that was killed sends them again.
    """

    def __init__(self, store: Store, authority: Authority, clock: Clock) -> None:
        self._store, self._authority, self._clock = store, authority, clock
        self._sent: dict[str, tuple[int, float]] = {}

    def of(self, row: Row) -> Outgoing | None:
        """The signed wish of a device; None if there is none to give."""
        if row.desired_version == 0:
            return None
        self._sent[row.id] = (row.desired_version, self._clock.monotonic())
        payload = seal_desired(desired_of(row), self._authority.desired)
        return Outgoing(desired_path(TENANT, row.id), payload)

    def due(self) -> list[Outgoing]:
        """The wishes to send now, of devices that are there."""
        behind = (
            (devices.c.desired_version > devices.c.seen_version) & devices.c.online & devices.c.revoked_ms.is_(None)
        )
        rows = self._store.read(lambda connection: connection.execute(sa.select(devices).where(behind)).all())
        return [wish for row in rows if self._is_due(row) and (wish := self.of(row)) is not None]

    def _is_due(self, row: Row) -> bool:
        version, at = self._sent.get(row.id, (0, 0.0))
        return version != row.desired_version or self._clock.monotonic() - at >= _RESEND_S


@dataclass(frozen=True)
class Who:
    """This process, as messages name it."""

    run: str
    boot: str
    new_id: Callable[[], str]


class HubLink:
    """Keeps the hub connected. `run` never returns; ``up`` says whether it is connected now."""

    def __init__(
        self,
        broker: Broker,
        context: ssl.SSLContext,
        inbound: Inbound,
        wishes: Wishes,
        clock: Clock,
        backoff: Backoff,
        who: Who,
    ) -> None:
        self._broker, self._context, self._inbound, self._wishes = broker, context, inbound, wishes
        self._clock, self._backoff, self._who = clock, backoff, who
        self._waiting: list[tuple[str, bytes]] = []
        self._came = anyio.Event()
        self._changed = anyio.Event()
        self.up = False

    def wishes_changed(self) -> None:
        """Some device is to be told something new."""
        self._changed.set()

    async def run(self) -> None:
        """Connects, serves, and connects again."""
        while True:
            why = "the connection ended"
            try:
                await self._connected()
            except* (mqtt.LinkLost, OSError) as group:
                why = str(group.exceptions[0])
            if self.up:
                _log.warning("the broker is gone (%s); devices wait meanwhile", why)
            self.up = False
            await self._clock.wait(self._backoff.pause_s())

    async def _connected(self) -> None:
        status = hub_status(TENANT)
        client = mqtt.client(
            self._broker,
            HUB,
            self._context,
            mqtt.Will(status, self._status(online=False)),
            keepalive_s=_KEEPALIVE_S,
            timeout_s=_TIMEOUT_S,
        )
        async with client:
            await client.subscribe(f"skerry/1/{TENANT}/+/up/#")
            await client.publish(status, self._status(online=True))
            self._backoff.worked()
            self.up = True
            self._waiting.clear()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._collect, client)
                tasks.start_soon(self._take_in, client)
                tasks.start_soon(self._give_wishes, client)

    async def _collect(self, client: mqtt.Client) -> None:
        async for message in client.messages:
            self._waiting.append((str(message.topic), message.payload))
            self._came.set()

    async def _take_in(self, client: mqtt.Client) -> None:
        while True:
            await self._came.wait()
            messages, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            if not self._waiting:
                self._came = anyio.Event()
            try:
                answers = await anyio.to_thread.run_sync(self._inbound.take, messages)
            except StorageError as exc:
                _log.error("%d messages were not taken in, their devices send them again: %s", len(messages), exc)
                await self._clock.wait(1.0)
                continue
            for answer in answers:
                await client.publish(answer.topic, answer.payload)

    async def _give_wishes(self, client: mqtt.Client) -> None:
        while True:
            self._changed = anyio.Event()
            for wish in await anyio.to_thread.run_sync(self._wishes.due):
                await client.publish(wish.topic, wish.payload)
            with anyio.move_on_after(1.0):
                await self._changed.wait()

    def _status(self, *, online: bool) -> bytes:
        utc = self._clock.utc()
        sent = Sent(utc_ms=utc.ms, mono_ms=int(self._clock.monotonic() * 1000), boot=self._who.boot, trust=utc.trust)
        return pack("status", HubStatus(online=online, run=self._who.run), sent, self._who.new_id())
