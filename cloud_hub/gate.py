"""What may pass from a client to the embedded broker: a pure look at each MQTT 3.1.1 packet.

The broker behind it lets any client take another's id, publish a will anywhere, keep messages for ever and send packets
of 256 MiB. So each packet is judged here first, by the name in the client's certificate: a device writes below its own
``up/`` and reads below its own ``down/``; the hub writes and reads everything of the tenant.

Format: MQTT 3.1.1 (OASIS, 2014), chapters 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cloud_hub.identity import HUB
from skerry.messages import MAX_MESSAGE

MAX_PACKET = MAX_MESSAGE + 512  # room for topic and header

_CONNECT, _PUBLISH, _SUBSCRIBE = 1, 3, 8
_FROM_CLIENT = frozenset({_CONNECT, _PUBLISH, 4, 5, 6, 7, _SUBSCRIBE, 10, 12, 14})
_LEVEL = 4
_WILL, _CLEAN, _WILL_RETAIN, _PASSWORD, _USERNAME = 0x04, 0x02, 0x20, 0x40, 0x80
_MAX_FILTERS = 16


class Refused(Exception):
    """The packet must not pass; the connection ends."""


@dataclass
class Gate:
    """One connection's gate.

    Args:
        name: the common name of the certificate that the client showed.
    """

    name: str
    tenant: str

    def __post_init__(self) -> None:
        self.connected = False

    def check(self, packet: bytes, body: int) -> None:
        """Raises `Refused` if ``packet`` must not pass.

        Args:
            packet: a whole packet.
            body: where what follows its fixed header begins.
        """
        kind, flags = packet[0] >> 4, packet[0] & 15
        if kind not in _FROM_CLIENT:
            raise Refused(f"a packet of type {kind}, which no client sends")
        if (kind == _CONNECT) == self.connected:
            raise Refused("a second CONNECT" if self.connected else f"a packet of type {kind} before CONNECT")
        fields = _Fields(packet, body)
        if kind == _CONNECT:
            self._check_connect(fields)
            self.connected = True
        elif kind == _PUBLISH:
            self._check_publish(fields.text(), retain=bool(flags & 1))
        elif kind == _SUBSCRIBE:
            self._check_subscribe(fields)

    def _check_connect(self, fields: _Fields) -> None:
        protocol, level, flags = fields.text(), fields.byte(), fields.byte()
        if protocol != "MQTT" or level != _LEVEL:
            raise Refused(f"protocol {protocol!r} level {level}; this broker speaks MQTT 3.1.1: connect with that")
        fields.skip(2)  # keep alive
        client = fields.text()
        if client != self.name:
            raise Refused(f"client id {client[:40]!r} with the certificate of another")
        if not flags & _CLEAN:
            raise Refused("a persistent session; this broker keeps nothing: connect with a clean one")
        if flags & (_USERNAME | _PASSWORD):
            raise Refused("a user name or password; certificates alone count here")
        if flags & _WILL:
            topic = fields.text()
            if flags & _WILL_RETAIN or not self._may_write(topic):
                raise Refused(f"a will at {topic[:120]!r}")

    def _check_publish(self, topic: str, *, retain: bool) -> None:
        if retain:
            raise Refused(f"a retained message at {topic[:120]!r}; this broker keeps nothing")
        if not self._may_write(topic):
            raise Refused(f"a message at {topic[:120]!r}")

    def _check_subscribe(self, fields: _Fields) -> None:
        fields.skip(2)  # packet id
        count = 0
        while not fields.at_end:
            topic = fields.text()
            fields.skip(1)  # quality of service
            count += 1
            if count > _MAX_FILTERS or not self._may_read(topic):
                raise Refused(f"a subscription to {topic[:120]!r}")

    def _may_write(self, topic: str) -> bool:
        if set(topic) & set("+#\0"):
            return False
        root = f"skerry/1/{self.tenant}/"
        return topic.startswith(root if self.name == HUB else f"{root}{self.name}/up/")

    def _may_read(self, topic: str) -> bool:
        root = f"skerry/1/{self.tenant}/"
        if self.name == HUB:
            return topic.startswith(root)
        return topic.startswith(f"{root}{self.name}/down/") or topic == f"{root}hub/status"


class _Fields:
    """Reads the fields of a packet in order. Raises `Refused` where one does not fit."""

    def __init__(self, packet: bytes, start: int) -> None:
        self._packet, self._at = packet, start

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._packet)

    def skip(self, count: int) -> bytes:
        taken = self._packet[self._at : self._at + count]
        if len(taken) != count:
            raise Refused("a packet that ends inside a field")
        self._at += count
        return taken

    def byte(self) -> int:
        return self.skip(1)[0]

    def text(self) -> str:
        (length,) = struct.unpack(">H", self.skip(2))
        try:
            return self.skip(length).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("a name that is not UTF-8") from None
