"""The embedded broker: amqtt behind the gate, in a process of its own that ends with the hub.

It is for a fleet of hundreds; beyond that, `skerry hub serve --broker` takes Mosquitto or any other. Run as
``python -m cloud_hub.broker`` it reads its `Settings` as one line of JSON, and writes the port that it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
from amqtt.adapters import ReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from typing_extensions import override

from cloud_hub.gate import MAX_PACKET, Gate, Refused
from skerry.errors import HubError

_log = logging.getLogger(__name__)

_LISTENER = "gate"
_PATIENCE_S = 10.0  # for the handshake, and for the first packet
_TOLD = 3  # refusals of one kind and client that are logged
_PR_SET_PDEATHSIG = 1


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, and as whom. ``ca`` is the fleet's: who has no certificate of it does not get in."""

    host: str
    port: int
    tenant: str
    ca: str
    certificate: str
    key: str


# --- in the broker's process ---------------------------------------------------------------------------------------


class GateReader(ReaderAdapter):  # type: ignore[misc] # amqtt ships no types
    """Gives the broker what the gate let pass. A refusal looks like the end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, gate: Gate, refused: Counter[tuple[str, str]]) -> None:
        self._reader, self._gate, self._refused = reader, gate, refused
        self._passed = b""

    @override
    async def read(self, n: int = -1) -> bytes:
        try:
            while len(self._passed) < n:
                patience = None if self._gate.connected else _PATIENCE_S
                self._passed += await asyncio.wait_for(self._next_packet(), patience)
        except (TimeoutError, Refused) as exc:
            self._tell(str(exc) or f"no CONNECT within {_PATIENCE_S:.0f} s")
            raise asyncio.IncompleteReadError(b"", n) from None
        data, self._passed = self._passed[:n], self._passed[n:]
        return data

    async def _next_packet(self) -> bytes:
        head = await self._reader.readexactly(1)
        length, shift = 0, 0
        while True:
            byte = await self._reader.readexactly(1)
            head += byte
            length |= (byte[0] & 127) << shift
            shift += 7
            if not byte[0] & 128:
                break
            if shift > 21:
                raise Refused("a packet whose length has more than four bytes")
        if length > MAX_PACKET:
            raise Refused(f"a packet of more than {MAX_PACKET} bytes")
        packet = head + await self._reader.readexactly(length)
        self._gate.check(packet, len(head))
        return packet

    def _tell(self, why: str) -> None:
        kind = (self._gate.name, why.split(" ")[1])
        self._refused[kind] += 1
        if self._refused[kind] <= _TOLD:
            more = " (more of these are not logged)" if self._refused[kind] == _TOLD else ""
            _log.warning("refused %s: %s%s", self._gate.name, why, more)

    @override
    def feed_eof(self) -> None:
        self._reader.feed_eof()


class Door:
    """Lets clients with a certificate of the fleet through to the broker, one gate each."""

    def __init__(self, broker: Broker, tenant: str) -> None:
        self._broker, self._tenant = broker, tenant
        self._refused: Counter[tuple[str, str]] = Counter()

    async def enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection to its end."""
        gate = Gate(_common_name(writer), self._tenant)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, TimeoutError):
            await self._broker.external_connected(
                GateReader(reader, gate, self._refused), StreamWriterAdapter(writer), _LISTENER
            )
        writer.close()


def _common_name(writer: asyncio.StreamWriter) -> str:
    subject = writer.get_extra_info("peercert")["subject"]
    return next((value for part in subject for key, value in part if key == "commonName"), "")


async def _serve(settings: Settings, say: IO[str]) -> None:
    listeners = {
        "default": ListenerConfig(type=ListenerType.EXTERNAL),
        _LISTENER: ListenerConfig(type=ListenerType.EXTERNAL),
    }
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker(BrokerConfig(listeners=listeners, plugins=plugins))
    await broker.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.key)
    context.load_verify_locations(settings.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(
        Door(broker, settings.tenant).enter,
        settings.host,
        settings.port,
        ssl=context,
        ssl_handshake_timeout=_PATIENCE_S,
        backlog=1024,
    )
    say.write(f"{server.sockets[0].getsockname()[1]}\n")
    say.flush()
    async with server:
        await server.serve_forever()


def _quiet(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """A client without a certificate, or one that left in the middle of something, is no error of ours."""
    exc = context.get("exception")
    if isinstance(exc, (OSError, asyncio.IncompleteReadError)):
        _log.info("a connection ended: %s", exc)
    else:
        _log.error("%s: %r", context.get("message"), exc)


def main() -> None:
    """The broker's process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the hub ends it
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s broker: %(message)s", stream=sys.stderr
    )
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)  # a client that leaves is no error of ours
    logging.getLogger("transitions").setLevel(logging.ERROR)
    settings = msgspec.json.decode(sys.stdin.readline(), type=Settings)

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(_quiet)
        await _serve(settings, sys.stdout)

    asyncio.run(serve())


# --- in the hub's process ------------------------------------------------------------------------------------------


class EmbeddedBroker:
    """The child. ``start`` may be called again after it ended."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> int:
        """Starts it and returns the port. Raises `HubError` if it cannot listen."""
        self.stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloud_hub.broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ,
        )
        assert self._process.stdin is not None  # noqa: S101 - for the type checker: both are pipes
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(msgspec.json.encode(self.settings).decode("utf-8") + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().strip()
        if not line:
            self._process.wait()
            raise HubError(
                f"the broker cannot listen on {self.settings.host}:{self.settings.port}: is the port in use? "
                "Its own words are above; give another with --mqtt-port"
            )
        return int(line)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None:
            with self._process as ending:  # closes its pipes and waits
                ending.kill()  # it keeps nothing
            self._process = None


@contextlib.contextmanager
def embedded(settings: Settings) -> Iterator[tuple[EmbeddedBroker, int]]:
    """Runs the broker while the block does; gives it and its port."""
    broker = EmbeddedBroker(settings)
    try:
        yield broker, broker.start()
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
