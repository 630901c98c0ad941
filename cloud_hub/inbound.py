"""What devices say, into the store, and what they are answered. Many messages are one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from cloud_hub.devices import raise_above
from cloud_hub.identity import TENANT
from cloud_hub.intake import take_in
from cloud_hub.store import Store
from cloud_hub.tables import devices, events, streams
from skerry.clock import Clock
from skerry.disk import Reached
from skerry.errors import FormatError
from skerry.messages import (
    ACK,
    BIRTH,
    DEATH,
    EVENTS,
    REBIRTH,
    REPORTED,
    Ack,
    Batch,
    Birth,
    Death,
    Envelope,
    Rebirth,
    Reported,
    Sent,
    Topic,
    pack,
    unpack,
)

_log = logging.getLogger(__name__)

_TOPICS: tuple[Topic[Any], ...] = (BIRTH, DEATH, REPORTED, EVENTS)


@dataclass(frozen=True)
class Outgoing:
    """A message for a device."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class _Said:
    device: str
    envelope: Envelope
    body: msgspec.Struct


class Inbound:
    """Takes messages in.

    Args:
        wishes: makes the signed wish of a device's row, if there is one to give.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        boot: str,
        new_id: Callable[[], str],
        wishes: Callable[[sa.Row[Any]], Outgoing | None],
        reached: Reached,
    ) -> None:
        self._store, self._clock, self._boot, self._new_id = store, clock, boot, new_id
        self._wishes, self._reached = wishes, reached
        self._complained: set[tuple[str, str]] = set()
        self._act: dict[type, Callable[[sa.Connection, sa.Row[Any], Envelope, Any], list[Outgoing]]] = {
            Birth: self._birth,
            Death: self._death,
            Reported: self._reported,
            Batch: self._batch,
        }

    def take(self, messages: Sequence[tuple[str, bytes]]) -> list[Outgoing]:
        """Stores what came, and returns the answers once that is on the disk. What is no message is logged and dropped.

        Raises:
            StorageError: nothing was stored; the devices repeat what is not answered.
        """
        said = [parsed for path, raw in messages if (parsed := self._parse(path, raw)) is not None]
        if not said:
            return []
        self._reached("inbound-before-commit")
        answers = self._store.write(lambda connection: self._take(connection, said))
        self._reached("inbound-after-commit")
        return answers

    def _parse(self, path: str, raw: bytes) -> _Said | None:
        for topic in _TOPICS:
            device = topic.device(TENANT, path)
            if device is None:
                continue
            try:
                envelope, body = unpack(topic.kind, topic.body, raw)
            except FormatError as exc:
                self._complain(device, topic.kind, str(exc))
                return None
            self._complained.discard((device, topic.kind))
            return _Said(device, envelope, body)
        return None

    def _complain(self, device: str, about: str, why: str) -> None:
        """Logs it, once until it is mended."""
        if (device, about) not in self._complained and len(self._complained) < 10_000:
            self._complained.add((device, about))
            _log.warning("device %s: %s; it is not heard until that is mended", device, why)

    def _take(self, connection: sa.Connection, said: Sequence[_Said]) -> list[Outgoing]:
        answers: list[Outgoing] = []
        for one in said:
            row = connection.execute(sa.select(devices).where(devices.c.id == one.device)).one_or_none()
            if row is None or row.revoked_ms is not None:
                self._complain(one.device, "unknown", "it is not of this fleet, or was revoked")
                continue
            heard = {"heard_ms": self._clock.utc().ms, "online": True}
            self._update(connection, row, **heard)
            answers += self._act[type(one.body)](connection, row, one.envelope, one.body)
            if row.birth is None and not isinstance(one.body, (Birth, Death)):
                answers.append(self._out(REBIRTH, row.id, Rebirth()))
        return answers

    def _birth(self, connection: sa.Connection, row: sa.Row[Any], _: Envelope, birth: Birth) -> list[Outgoing]:
        self._update(connection, row, birth=msgspec.json.encode(birth), seen_version=birth.seen_version)
        raise_above(connection, row, birth.seen_version)
        acks = [
            self._out(ACK, row.id, Ack(stream=stream, last_seq=last))
            for stream in birth.streams
            if (last := _last_seq(connection, row.id, stream)) is not None
        ]
        row = connection.execute(sa.select(devices).where(devices.c.id == row.id)).one()
        wish = self._wishes(row)
        return [wish, *acks] if wish is not None else acks

    def _death(self, connection: sa.Connection, row: sa.Row[Any], _: Envelope, death: Death) -> list[Outgoing]:
        born = msgspec.json.decode(row.birth, type=Birth) if row.birth is not None else None
        if born is not None and born.run == death.run:  # not the late will of a process that was replaced
            self._update(connection, row, online=False)
        return []

    def _reported(
        self, connection: sa.Connection, row: sa.Row[Any], envelope: Envelope, said: Reported
    ) -> list[Outgoing]:
        sent = envelope.sent
        if row.reported_boot == sent.boot and row.reported_mono_ms > sent.mono_ms:
            return []  # overtaken on the way
        self._update(
            connection,
            row,
            reported=msgspec.json.encode(said),
            reported_ms=self._clock.utc().ms,
            reported_boot=sent.boot,
            reported_mono_ms=sent.mono_ms,
            seen_version=said.seen_version,
        )
        raise_above(connection, row, said.seen_version)
        return []

    def _batch(self, connection: sa.Connection, row: sa.Row[Any], _: Envelope, batch: Batch) -> list[Outgoing]:
        last = _last_seq(connection, row.id, batch.stream)
        if last is None:
            self._complain(row.id, "stream", f"it sends events of stream {batch.stream}, which is another device's")
            return []
        intake = take_in(last, batch)
        now = self._clock.utc().ms
        fresh = batch.events[intake.skip : intake.skip + intake.take]
        if fresh:
            first = batch.first_seq + intake.skip
            rows = [
                {"stream": batch.stream, "seq": seq, "device": row.id, "received_ms": now, "event": bytes(event)}
                for seq, event in enumerate(fresh, first)
            ]
            connection.execute(sa.insert(events), rows)
            _advance(connection, row.id, batch.stream, intake.last, intake.lost)
            if intake.lost:
                _log.warning("device %s lost %d events before #%d of %s", row.id, intake.lost, first, batch.stream)
        return [self._out(ACK, row.id, Ack(stream=batch.stream, last_seq=intake.last))]

    def _update(self, connection: sa.Connection, row: sa.Row[Any], **values: Any) -> None:
        connection.execute(sa.update(devices).where(devices.c.id == row.id).values(**values))

    def _out(self, topic: Topic[Any], device: str, body: msgspec.Struct) -> Outgoing:
        utc = self._clock.utc()
        mono_ms = int(self._clock.monotonic() * 1000)
        sent = Sent(utc_ms=utc.ms, mono_ms=mono_ms, boot=self._boot, trust=utc.trust)
        return Outgoing(topic.path(TENANT, device), pack(topic.kind, body, sent, self._new_id()))


def _last_seq(connection: sa.Connection, device: str, stream: str) -> int | None:
    """The last event of the stream that is here, 0 if it is new; None if it belongs to another device."""
    row = connection.execute(sa.select(streams).where(streams.c.id == stream)).one_or_none()
    if row is None:
        return 0
    return int(row.last_seq) if row.device == device else None


def _advance(connection: sa.Connection, device: str, stream: str, last: int, lost: int) -> None:
    change = sa.update(streams).where(streams.c.id == stream)
    done = connection.execute(change.values(last_seq=last, lost=streams.c.lost + lost))
    if not done.rowcount:
        connection.execute(sa.insert(streams).values(id=stream, device=device, last_seq=last, lost=lost))
