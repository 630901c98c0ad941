"""The routes of the agent's HTTP interface: what each path answers. What it says comes from elsewhere."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edge_agent.api import kserve, live, metrics
from edge_agent.gate import LIVE_VIEW, SNAPSHOT, Gate
from edge_agent.histogram import Histogram
from edge_agent.mailbox import Put
from edge_agent.sources.readers import Readers
from edge_agent.status import Status
from edge_agent.vision import ActiveModel, Worker
from skerry import __version__
from skerry.errors import BackendError, SkerryError, SourceError, UsageError
from skerry.execution.frames import decode_image
from skerry.manifest import Manifest
from skerry.wire import encode

_PAGE = Path(__file__).with_name("page.html")
_MOST_BYTES = 64 << 20
_PATIENCE_S = 30.0
_QUEUED = 256  # events of one listener
_HEARTBEAT_S = 15.0


@dataclass(frozen=True)
class Api:
    """Everything that the routes ask.

    Attributes:
        manifest: of a release on this device; raises `SkerryError` or `OSError` if it cannot be read.
        gate: the one that holds now.
        pictures: an event's picture by its digest; None if it is not here.
    """

    status: Callable[[], Status]
    stages: Mapping[str, Histogram]
    worker: Worker
    readers: Readers
    newest: live.Newest
    verdicts: live.Verdicts
    stream: live.Stream
    gate: Callable[[], Gate]
    pictures: Callable[[str], bytes | None]
    manifest: Callable[[str], Manifest]

    def app(self) -> Starlette:
        """The ASGI application."""
        model = "/v2/models/{model}"
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/status", self.whole_status),
                Route("/metrics", self.scrape),
                Route("/v1/events", self.events),
                Route("/v1/live/{source}", functools.partial(self.look, LIVE_VIEW)),
                Route("/v1/snapshot/{source}", functools.partial(self.look, SNAPSHOT)),
                Route("/v1/pictures/{sha256}", self.picture),
                Route("/v1/sources/{source}/frames", self.push, methods=["POST"]),
                Route("/v2", self.server),
                Route("/v2/health/live", self.alive),
                Route("/v2/health/ready", self.ready),
                *(
                    Route(path + end, endpoint, methods=methods)
                    for path in (model, model + "/versions/{version}")
                    for end, endpoint, methods in (
                        ("", self.metadata, ["GET"]),
                        ("/ready", self.model_ready, ["GET"]),
                        ("/infer", self.infer, ["POST"]),
                    )
                ),
            ],
            exception_handlers={404: _not_found, SkerryError: _refused},
        )

    # --- state ----------------------------------------------------------------------------------------------------

    async def page(self, _request: Request) -> Response:
        return Response(_PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def health(self, _request: Request) -> Response:
        now = self.status()
        return _json({"vision": now.vision, "state": now.record.state}, 200 if now.vision else 503)

    async def whole_status(self, _request: Request) -> Response:
        return _json(self.status())

    async def scrape(self, _request: Request) -> Response:
        return Response(metrics.text(self.status(), self.stages), media_type=metrics.CONTENT_TYPE)

    async def events(self, request: Request) -> Response:
        """Server-sent events: each event that the agent accepts from now on."""
        return StreamingResponse(self._events(request), media_type="text/event-stream", headers=_NEVER_KEPT)

    async def _events(self, request: Request) -> AsyncIterator[bytes]:
        waiting: asyncio.Queue[bytes] = asyncio.Queue(_QUEUED)
        lost = 0

        def listener(event: bytes) -> None:
            nonlocal lost
            if waiting.full():
                waiting.get_nowait()
                lost += 1
            waiting.put_nowait(event)

        self.stream.listen(listener)
        try:
            yield b": the agent's events\n\n"
            while not await request.is_disconnected():
                try:
                    event = await asyncio.wait_for(waiting.get(), _HEARTBEAT_S)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
                    continue
                if lost:
                    yield b'event: lost\ndata: {"events": %d}\n\n' % lost
                    lost = 0
                yield b"data: " + event + b"\n\n"
        finally:
            self.stream.leave(listener)

    # --- pictures -------------------------------------------------------------------------------------------------

    async def look(self, sink: str, request: Request) -> Response:
        """The newest answered picture of a source, as it may leave; its answers are in a header."""
        source = request.path_params["source"]
        if not self.gate().allows(sink):
            return _json({"error": f"pictures do not leave by {sink}: privacy.allow in agent.toml lets them"}, 403)
        answered = self.newest.of(source)
        if answered is None:
            return _json({"error": f"no answered picture of a source {source}"}, 404)
        make = functools.partial(live.picture, self.gate(), sink, answered, small=sink == LIVE_VIEW)
        picture = await anyio.to_thread.run_sync(make)
        if picture is None:
            return _json({"error": "this picture shows what must not be shown: privacy.drop in agent.toml"}, 403)
        about = {"frame": answered.frame.number, "release": answered.release, "answers": answered.answers}
        headers = {"X-Skerry-Answers": msgspec.json.encode(about).decode("ascii", "backslashreplace"), **_NEVER_KEPT}
        return Response(picture, media_type="image/jpeg", headers=headers)

    async def picture(self, request: Request) -> Response:
        """An event's picture, by the digest in the event. It passed the gate when it was made."""
        raw = await anyio.to_thread.run_sync(self.pictures, request.path_params["sha256"])
        if raw is None:
            return _json({"error": "no such picture here, or not any more: pictures.max_mib in agent.toml"}, 404)
        return Response(raw, media_type="image/jpeg")

    async def push(self, request: Request) -> Response:
        """Takes a picture in; answers with the verdict on it."""
        source = request.path_params["source"]
        if (reader := self.readers.pushed(source)) is None:
            return _json(
                {"error": f'no source {source} takes pictures; one with url = "push:" in agent.toml does'}, 404
            )
        picture = await anyio.to_thread.run_sync(decode_image, await _body(request))
        expected: list[tuple[Any, Future[live.Answered]]] = []
        put = reader.offer(picture, lambda frame: expected.append((frame, self.verdicts.expect(frame))))
        frame, verdict = expected[0]
        try:
            if put is not Put.TAKEN:
                return _json({"error": "no verdict", "why": f"the queue is {put.value}", "frame": frame.number}, 503)
            answered = await asyncio.wait_for(asyncio.wrap_future(verdict), _PATIENCE_S)
        except (LookupError, asyncio.TimeoutError) as exc:
            return _json({"error": "no verdict", "why": str(exc) or "none in time", "frame": frame.number}, 503)
        finally:
            self.verdicts.forget(frame)
        return _json({"frame": frame.number, "release": answered.release, "answers": answered.answers})

    # --- the open inference protocol ------------------------------------------------------------------------------

    async def server(self, _request: Request) -> Response:
        return _json({"name": "skerry", "version": __version__, "extensions": kserve.EXTENSIONS})

    async def alive(self, _request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _request: Request) -> Response:
        vision = self.status().vision
        return _json({"ready": vision}, 200 if vision else 503)

    async def metadata(self, request: Request) -> Response:
        manifest, active = self._model(request)
        inputs, outputs = manifest.tensors(manifest.variant(active.variant).graph)
        return _json(kserve.model_metadata(manifest, inputs, outputs))

    async def model_ready(self, request: Request) -> Response:
        manifest, _ = self._model(request)
        return _json({"name": manifest.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        manifest, active = self._model(request)
        inputs, _ = manifest.tensors(manifest.variant(active.variant).graph)
        asked = kserve.parse(await _body(request), request.headers.get(kserve.HEADER), inputs)
        outputs = await asyncio.wait_for(asyncio.wrap_future(self.worker.ask(_run(asked, active.release))), _PATIENCE_S)
        body, length = kserve.respond(asked, manifest.name, str(manifest.version), outputs)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={kserve.HEADER: str(length)})

    def _model(self, request: Request) -> tuple[Manifest, ActiveModel]:
        """The model in service, if it is the one that is asked for."""
        active = self.worker.active
        if active is None:
            raise BackendError("no model is in service")
        manifest = self.manifest(active.release)
        wanted, version = request.path_params["model"], request.path_params.get("version", str(manifest.version))
        if (wanted, version) != (manifest.name, str(manifest.version)):
            raise UsageError(
                f"the model in service is {manifest.name} version {manifest.version}, not {wanted} {version}"
            )
        return manifest, active


def _run(asked: kserve.Asked, release: str) -> Callable[[ActiveModel], dict[str, kserve.Array]]:
    def job(active: ActiveModel) -> dict[str, kserve.Array]:
        if active.release != release:
            raise BackendError("the model was exchanged meanwhile; ask again")
        for name, value in asked.inputs.items():
            np.copyto(active.backend.inputs[name], value)
        return {name: np.array(value) for name, value in active.backend.run().items()}

    return job


_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob:; connect-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_NEVER_KEPT = {"Cache-Control": "no-store"}


async def _body(request: Request) -> bytes:
    """Raises `UsageError` for one that is too large."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > _MOST_BYTES:
            raise UsageError(f"a request of more than {_MOST_BYTES >> 20} MiB")
    return bytes(found)


def _json(value: Any, code: int = 200) -> Response:
    body = encode(value) if isinstance(value, msgspec.Struct) else msgspec.json.encode(value)
    return Response(body, code, media_type="application/json")


async def _not_found(_request: Request, _exc: Exception) -> Response:
    return _json({"error": "no such path; there are /, /status, /health, /metrics, /v1/… and /v2/…"}, 404)


async def _refused(_request: Request, exc: Exception) -> Response:
    code = 400 if isinstance(exc, (UsageError, SourceError)) else 503
    return _json({"error": str(exc)}, code)
