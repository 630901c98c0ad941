"""The agent's state for people and monitors on this machine: HTTP on loopback, read only, two paths.

GET /health   200 if vision runs, 503 if not; a line of JSON
GET /status   everything (`Status`)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec

from skerry.update import Record
from skerry.wire import ProofReport

_MAX_REQUEST = 8192
_PATIENCE_S = 5.0


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """captured = processed + superseded + failed + waiting."""

    captured: int
    processed: int
    superseded: int
    failed: int
    waiting: int
    failing: str | None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """From capture to answer, of the newest frames."""

    frames: int
    p50_ms: float
    p99_ms: float


class OutboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since the outbox was made, but for ``lost`` and ``unrecorded``: since the agent started."""

    stream: str
    accepted: int
    delivered: int
    lost: int
    unrecorded: int
    failing: str | None


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The link to the hub. ``waiting`` events are accepted and not acknowledged; the counts are since the start."""

    device: str
    hub: str
    connected: bool
    why: str | None
    waiting: int
    acknowledged: int
    lost: int
    refused: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says about itself."""

    version: str
    pid: int
    run: str
    uptime_s: float
    vision: bool
    record: Record
    wish: str | None
    names: dict[str, str]
    proofs: list[ProofReport]
    sources: dict[str, SourceStatus]
    latency: Latency | None
    outbox: OutboxStatus
    link: LinkStatus | None = None


@contextlib.asynccontextmanager
async def serve(port: int, status: Callable[[], Status]) -> AsyncIterator[int]:
    """Answers on 127.0.0.1 while the block runs; gives the port, which is a free one for ``port`` 0."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            ConnectionError, asyncio.TimeoutError, asyncio.LimitOverrunError, asyncio.IncompleteReadError
        ):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE_S)
            writer.write(respond(request.split(b"\r\n", 1)[0], status))
            await asyncio.wait_for(writer.drain(), _PATIENCE_S)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=_MAX_REQUEST)
    async with server:
        yield server.sockets[0].getsockname()[1]


def respond(line: bytes, status: Callable[[], Status]) -> bytes:
    """The whole HTTP/1.1 response to a request line."""
    method, _, rest = line.partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0]
    if method != b"GET":
        return _response(b"405 Method Not Allowed", b'{"error": "read only: GET"}')
    if path == b"/health":
        now = status()
        state = b"200 OK" if now.vision else b"503 Service Unavailable"
        return _response(state, msgspec.json.encode({"vision": now.vision, "state": now.record.state}))
    if path == b"/status":
        return _response(b"200 OK", msgspec.json.encode(status()))
    return _response(b"404 Not Found", b'{"error": "there are /health and /status"}')


def _response(state: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (state, len(body)) + body
