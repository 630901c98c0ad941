"""Events to an MQTT broker: each acknowledged by it (QoS 1) before it counts as delivered, in order, none kept there.

    <topic>/events/<kind>[/<source>]   an event, as in the file: {"stream", "seq", "event"}
    <topic>/status                     "online" or "offline", retained; the broker says "offline" if the agent cannot

A connection that breaks off may bring an event twice: a receiver drops repeats by ``stream`` and ``seq``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from urllib.parse import SplitResult

import aiomqtt
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from edge_agent.config import MqttConfig
from edge_agent.sinks.address import address
from edge_agent.sinks.inline import Inline, head
from edge_agent.sinks.sink import Sink
from edge_agent.sinks.tls import trusting
from edge_agent.sources.credentials import Credentials
from skerry.errors import SinkError
from skerry.wire import Stored

_AT_ONCE = 8  # messages that wait for their acknowledgement together
_TIMEOUT_S = 5.0
_NOT_IN_A_TOPIC = re.compile(r"[/+#\x00]")


class MqttSink(Sink):
    """Publishes events. Its connection lives in an event loop of its own, so that it is kept up between events.

    Raises:
        ConfigError: no address of a broker, or no file of whom to believe.
    """

    name = "mqtt"
    longest_pause_s = 60.0
    idle_s = 2.0

    def __init__(self, config: MqttConfig, credentials: Credentials | None, inline: Inline, client_id: str) -> None:
        self._config, self._credentials, self._inline, self._id = config, credentials, inline, client_id
        self._address = _address(config.url)
        self._context = trusting(config.ca) if self._address.scheme == "mqtts" else None
        self._portal: BlockingPortal | None = None
        self._open = contextlib.ExitStack()  # the connection
        self._loop = contextlib.ExitStack()  # the event loop's thread
        self._client: aiomqtt.Client | None = None
        self._lost: Future[None] | None = None
        self._announced: set[str] = set()

    def deliver(self, events: Sequence[Stored]) -> None:
        try:
            client = self._connected()
            for group in _groups(events, _AT_ONCE):
                messages = [message for stored in group for message in self._messages(stored)]
                self._call(client, messages)
        except (aiomqtt.MqttError, OSError) as exc:
            self._disconnect()
            raise SinkError(f"the broker {self._config.url} does not take events: {exc or type(exc).__name__}") from exc

    def close(self) -> None:
        if self._client is not None:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                self._call(self._client, [(f"{self._config.topic}/status", b"offline", True)])
        self._disconnect()
        self._loop.close()
        self._portal = None

    # The connection

    def _connected(self) -> aiomqtt.Client:
        if self._lost is not None and self._lost.done():
            self._disconnect()
        if self._client is None:
            if self._portal is None:
                self._portal = self._loop.enter_context(start_blocking_portal())
            client = self._portal.call(self._make)
            self._open.enter_context(self._portal.wrap_async_context_manager(client))
            self._client, self._lost = client, self._portal.start_task_soon(_until_lost, client)
            self._call(client, [(f"{self._config.topic}/status", b"online", True)])
        return self._client

    def _make(self) -> aiomqtt.Client:
        """In the event loop, which it takes for its own."""
        secret = self._credentials
        return aiomqtt.Client(
            self._address.hostname or "",
            self._address.port or (8883 if self._address.scheme == "mqtts" else 1883),
            identifier=self._id,
            username=secret.user if secret else None,
            password=secret.password if secret else None,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            tls_context=self._context,
            will=aiomqtt.Will(f"{self._config.topic}/status", b"offline", qos=1, retain=True),
            keepalive=self._config.keepalive_s,
            timeout=_TIMEOUT_S,
        )

    def _disconnect(self) -> None:
        self._client = self._lost = None
        self._announced.clear()
        with contextlib.suppress(aiomqtt.MqttError, OSError):
            self._open.close()

    def _call(self, client: aiomqtt.Client, messages: Sequence[Message]) -> None:
        assert self._portal is not None  # noqa: S101 - a client is made in it
        self._portal.call(_publish, client, messages)

    # Messages

    def _messages(self, stored: Stored) -> Iterator[Message]:
        about = head(stored)
        of = about.source or about.app
        if about.source is not None and about.kind == "seen" and about.source not in self._announced:
            self._announced.add(about.source)
            if self._config.home_assistant is not None:
                yield self._discovery(self._config.home_assistant, about.source)
        yield self._topic(about.kind, of), self._inline.encode(stored), False

    def _topic(self, kind: str, of: str | None) -> str:
        parts = [self._config.topic, "events", _plain(kind), *([_plain(of)] if of else [])]
        return "/".join(parts)

    def _discovery(self, prefix: str, source: str) -> Message:
        """What makes Home Assistant show a source as a sensor: retained, so that it is there after its restart."""
        name, topic = re.sub(r"[^A-Za-z0-9_-]", "_", source), self._topic("seen", source)
        sensor = {
            "name": source,
            "unique_id": f"{self._id}-{name}",
            "state_topic": topic,
            "value_template": "{{ (value_json.event.answers | map(attribute='label') | join(', ')) or 'nothing' }}",
            "json_attributes_topic": topic,
            "json_attributes_template": "{{ value_json.event | tojson }}",
            "availability_topic": f"{self._config.topic}/status",
            "device": {"identifiers": [self._id], "name": self._config.topic, "manufacturer": "Skerry"},
        }
        return f"{prefix}/sensor/{self._id}/{name}/config", msgspec.json.encode(sensor), True


Message = tuple[str, bytes, bool]  # topic, payload, whether it is retained


async def _publish(client: aiomqtt.Client, messages: Sequence[Message]) -> None:
    """Sends in this order; returns when the broker has acknowledged them all."""
    sent = [client.publish(topic, payload, qos=1, retain=retain) for topic, payload, retain in messages]
    for outcome in await asyncio.gather(*sent, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _until_lost(client: aiomqtt.Client) -> None:
    with contextlib.suppress(aiomqtt.MqttError):
        async for _ in client.messages:
            pass


def _groups(events: Sequence[Stored], size: int) -> Iterator[Sequence[Stored]]:
    rest = iter(events)
    while group := list(itertools.islice(rest, size)):
        yield group


def _plain(name: str) -> str:
    """A name as one level of a topic."""
    return _NOT_IN_A_TOPIC.sub("_", name)


def _address(url: str) -> SplitResult:
    example, instead = "mqtts://host:8883", "name credentials instead"
    return address("sinks.mqtt.url", url, schemes=("mqtt", "mqtts"), example=example, instead=instead)
