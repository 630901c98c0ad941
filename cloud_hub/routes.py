"""The routes of the hub's REST API, by what they are about. Each calls a service and says what came of it."""

# No `from __future__ import annotations` here: FastAPI reads the annotations, and some of them are local.
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import anyio.from_thread
import anyio.to_thread
import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cloud_hub import views
from cloud_hub.blobs import Blobs
from cloud_hub.devices import Devices
from cloud_hub.identity import Authority, digest
from cloud_hub.pictures import MAX_BESIDE, PicturesOf
from cloud_hub.registry import Registry
from cloud_hub.rollouts.judge import Policy
from cloud_hub.rollouts.service import Rollouts
from cloud_hub.store import Store
from cloud_hub.tables import devices, events, operators, streams
from skerry import __version__
from skerry.clock import Clock
from skerry.errors import Conflict, NotAllowed, NotFound, TooLarge
from skerry.fleet import documents as doc

_PAGE = Path(__file__).with_name("page.html")


def _body(kind: str) -> dict[str, Any]:
    return {"requestBody": {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}


_RAW_BODY, _JPEG_BODY = _body("application/octet-stream"), _body("image/jpeg")
_PLAIN = {"x-content-type-options": "nosniff"}


_bearer = HTTPBearer(auto_error=False, description="an operator's API token, or a device's JWT")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True)
class Services:
    """What the routes call; the composition root makes it."""

    store: Store
    authority: Authority
    blobs: Blobs
    pictures: PicturesOf
    samples: PicturesOf
    registry: Registry
    devices: Devices
    rollouts: Rollouts
    clock: Clock
    new_id: Callable[[], str]
    public_url: str
    run: str
    broker_up: Callable[[], bool]


class Doors:
    """Who may call a route: each method is a dependency that names the caller, or refuses."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def operator(self, bearer: Bearer) -> str:
        """An operator's name."""
        return _operator(self._s.store, bearer)

    def device(self, bearer: Bearer) -> str:
        """A device's id."""
        if bearer is None:
            raise NotAllowed("expected a device's token (Authorization: Bearer …)")
        return self._s.devices.authenticate(bearer.credentials)

    def either(self, bearer: Bearer) -> str:
        """A device's id or an operator's name."""
        is_device = bearer is not None and bearer.credentials.count(".") == 2
        return self.device(bearer) if is_device else self.operator(bearer)


def hub_routes(s: Services, _: Doors) -> APIRouter:
    """About the hub itself: for everybody."""
    api = APIRouter(tags=["hub"])

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> FileResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return FileResponse(_PAGE, media_type="text/html", headers={"content-security-policy": policy})

    @api.get("/v1/health")
    def health() -> doc.Health:
        """Whether the hub works."""
        s.store.read(lambda connection: connection.execute(sa.select(1)).scalar())
        return doc.Health(version=__version__, run=s.run, broker=s.broker_up())

    @api.get("/v1/ca", response_class=PlainTextResponse)
    def ca() -> str:
        """The fleet CA's certificate (PEM). A claim token says which one it must be."""
        return s.authority.ca_pem

    return api


def device_routes(s: Services, doors: Doors) -> APIRouter:
    """Devices join, are seen, and leave."""
    api = APIRouter(tags=["devices"])
    Operator = Annotated[str, Depends(doors.operator)]  # noqa: N806 - a type

    @api.post("/v1/enrol")
    def enrol(body: doc.EnrolIn) -> doc.EnrolOut:
        """A device joins: its claim's secret and its key's request, for a certificate and an id."""
        made = s.devices.enrol(body.secret, body.csr, body.name)
        return doc.EnrolOut.model_validate(msgspec.to_builtins(made))

    @api.post("/v1/claims")
    def create_claim(body: doc.ClaimIn, _: Operator) -> doc.ClaimOut:
        """Makes a claim token's secret."""
        secret = s.devices.create_claim(body.group, body.uses, body.hours)
        return doc.ClaimOut(
            url=s.public_url, ca_sha256=s.authority.ca_sha256, secret=secret, group=body.group, uses=body.uses
        )

    @api.get("/v1/devices")
    def list_devices(_: Operator, group: str | None = None) -> list[doc.Device]:
        """Every device, or a group's."""
        names = views.names(s.registry)
        return [views.device(row, names) for row in s.devices.all(group)]

    @api.get("/v1/devices/{word}")
    def get_device(word: str, _: Operator) -> doc.Device:
        """A device by its id, the beginning of it, or its name."""
        return views.device(s.devices.find(word), views.names(s.registry))

    @api.get("/v1/devices/{word}/streams")
    def list_streams(word: str, _: Operator) -> list[doc.Stream]:
        """How far the hub has each of the device's event logs."""
        query = sa.select(streams).where(streams.c.device == s.devices.find(word).id)
        rows = s.store.read(lambda connection: connection.execute(query).all())
        return [doc.Stream(id=row.id, last_seq=row.last_seq, lost=row.lost) for row in rows]

    @api.delete("/v1/devices/{word}", status_code=204)
    def revoke(word: str, _: Operator) -> None:
        """Revokes a device: it gets nothing, and is not heard."""
        s.devices.revoke(s.devices.find(word).id)

    @api.post("/v1/devices/{word}/clear")
    def clear(word: str, body: doc.ClearIn, _: Operator) -> doc.Device:
        """Takes back a device's rejection of a release, so that it may try again."""
        row = s.devices.find(word)
        s.devices.clear(row.id, s.registry.find(body.release).id)
        return views.device(s.devices.get(row.id), views.names(s.registry))

    @api.get("/v1/events")
    def list_events(
        _: Operator,
        device: str | None = None,
        after: Annotated[int, Query(ge=0, le=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> doc.Events:
        """Events in the order in which the hub took them in."""
        query = sa.select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
        if device is not None:
            query = query.where(events.c.device == s.devices.find(device).id)
        rows = s.store.read(lambda connection: connection.execute(query).all())
        found = [
            doc.Event(
                id=row.id,
                device=row.device,
                stream=row.stream,
                seq=row.seq,
                received_ms=row.received_ms,
                event=views.event(row.event),
            )
            for row in rows
        ]
        return doc.Events(events=found, next=rows[-1].id if rows else after)

    return api


def picture_routes(s: Services, doors: Doors) -> APIRouter:
    """What devices' cameras saw, as far as a device lets it out."""
    api = APIRouter(tags=["pictures"])
    Operator = Annotated[str, Depends(doors.operator)]  # noqa: N806 - a type
    Device = Annotated[str, Depends(doors.device)]  # noqa: N806 - a type

    @api.put("/v1/devices/{word}/pictures/{sha256}", status_code=204, openapi_extra=_JPEG_BODY)
    async def put_picture(word: str, sha256: doc.Digest, request: Request, me: Device) -> None:
        """Keeps a picture of an event of the device that asks."""
        await _keep(s.pictures, _own(word, me), sha256, request)

    @api.get("/v1/devices/{word}/pictures/{sha256}", response_class=FileResponse)
    def get_picture(word: str, sha256: doc.Digest, _: Operator) -> FileResponse:
        """A picture of an event, by the digest that the event names."""
        return FileResponse(s.pictures.path(s.devices.find(word).id, sha256), media_type="image/jpeg", headers=_PLAIN)

    @api.put("/v1/devices/{word}/samples/{sha256}", status_code=204, openapi_extra=_JPEG_BODY)
    async def put_sample(word: str, sha256: doc.Digest, request: Request, me: Device) -> None:
        """Keeps a frame to train with, of the device that asks."""
        await _keep(s.samples, _own(word, me), sha256, request)

    @api.get("/v1/devices/{word}/samples/{sha256}", response_class=FileResponse)
    def get_sample(word: str, sha256: doc.Digest, _: Operator) -> FileResponse:
        """A frame to train with."""
        return FileResponse(s.samples.path(s.devices.find(word).id, sha256), media_type="image/jpeg", headers=_PLAIN)

    @api.put("/v1/devices/{word}/samples/{sha256}/answers", status_code=204, openapi_extra=_RAW_BODY)
    async def put_answers(word: str, sha256: doc.Digest, request: Request, me: Device) -> None:
        """Keeps what a device said about a sample that it sent before."""
        device, raw = _own(word, me), b""
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MAX_BESIDE:
                raise TooLarge(f"expected at most {MAX_BESIDE} bytes, more came")
        await anyio.to_thread.run_sync(s.samples.put_beside, device, sha256, raw)

    @api.get("/v1/devices/{word}/samples/{sha256}/answers", response_class=FileResponse)
    def get_answers(word: str, sha256: doc.Digest, _: Operator) -> FileResponse:
        """What a device said about a sample."""
        path = s.samples.beside(s.devices.find(word).id, sha256)
        return FileResponse(path, media_type="application/json", headers=_PLAIN)

    return api


def _own(word: str, me: str) -> str:
    if word != me:
        raise NotAllowed("a device keeps its own pictures here, not another one's")
    return me


async def _keep(pictures: PicturesOf, device: str, sha256: str, request: Request) -> None:
    await anyio.to_thread.run_sync(pictures.put, device, sha256, _arriving(request))


def _arriving(request: Request) -> Iterator[bytes]:
    """A request's body, as it comes; for another thread than the event loop's."""
    chunks = request.stream().__aiter__()
    while (chunk := anyio.from_thread.run(_next, chunks)) is not None:
        yield chunk


def release_routes(s: Services, doors: Doors) -> APIRouter:
    """Releases and their files."""
    api = APIRouter(tags=["releases"])
    Operator = Annotated[str, Depends(doors.operator)]  # noqa: N806 - a type
    Either = Annotated[str, Depends(doors.either)]  # noqa: N806 - a type

    @api.put("/v1/blobs/sha256/{sha256}", status_code=204, openapi_extra=_RAW_BODY)
    async def put_blob(sha256: doc.Digest, request: Request, _: Operator) -> None:
        """Keeps a file under its digest."""
        await anyio.to_thread.run_sync(s.blobs.put, sha256, _arriving(request))

    @api.get("/v1/blobs/sha256/{sha256}", response_class=FileResponse)
    def get_blob(sha256: doc.Digest, _: Either) -> FileResponse:
        """A file by its digest; ranges are served."""
        return FileResponse(s.blobs.path(sha256), media_type="application/octet-stream")

    @api.post("/v1/releases/missing")
    def missing(body: doc.MissingIn, _: Operator) -> doc.MissingOut:
        """Which blobs of a bundle are still to be sent; its bundle.sig is sent first."""
        return doc.MissingOut(missing=s.registry.missing(body.signature))

    @api.post("/v1/releases")
    def push(body: doc.ReleaseIn, _: Operator) -> doc.Release:
        """Makes a release known whose blobs are all there."""
        return doc.Release(**vars(s.registry.push(body.manifest, body.signature)))

    @api.get("/v1/releases")
    def list_releases(_: Operator) -> list[doc.Release]:
        """Every release, newest first."""
        return [doc.Release(**vars(release)) for release in s.registry.all()]

    @api.get("/v1/releases/{name}")
    def get_release(name: str, _: Either) -> doc.Release:
        """A release by id or name@version."""
        return doc.Release(**vars(s.registry.find(name)))

    return api


def rollout_routes(s: Services, doors: Doors) -> APIRouter:
    """How releases reach devices."""
    api = APIRouter(tags=["rollouts"])
    Operator = Annotated[str, Depends(doors.operator)]  # noqa: N806 - a type

    @api.post("/v1/rollouts")
    def draft(body: doc.RolloutIn, _: Operator) -> doc.Rollout:
        """Drafts a rollout: who is in which wave is settled now. Nothing is told to a device before it is started."""
        policy = msgspec.convert(body.policy.model_dump(), Policy)
        release = s.registry.find(body.release)
        number = s.rollouts.draft(release, s.devices.all(body.group), body.canary, body.waves, policy)
        return _rollout(s, number)

    @api.get("/v1/rollouts")
    def list_rollouts(_: Operator) -> list[doc.RolloutLine]:
        """Every rollout, newest first."""
        names = views.names(s.registry)
        return [
            doc.RolloutLine(
                id=int(rollout.id),
                release=names.get(rollout.release, rollout.release),
                state=rollout.state.value,
                wave=rollout.wave,
                waves=len(rollout.waves),
                devices=sum(len(wave) for wave in rollout.waves),
                created_ms=created_ms,
                due_ms=rollout.due_ms,
            )
            for rollout, created_ms in s.rollouts.all()
        ]

    @api.get("/v1/rollouts/{number}")
    def get_rollout(number: doc.Id, _: Operator) -> doc.Rollout:
        """A rollout, with how each device stands and every decision's numbers."""
        return _rollout(s, number)

    @api.post("/v1/rollouts/{number}/{action}")
    def act(number: doc.Id, action: doc.Action, by: Operator) -> doc.Rollout:
        """An operator's word: start, pause, resume, take-back or abort."""
        s.rollouts.act(number, action, by)
        return _rollout(s, number)

    return api


def operator_routes(s: Services, doors: Doors) -> APIRouter:
    """Who may operate."""
    api = APIRouter(tags=["operators"])
    Operator = Annotated[str, Depends(doors.operator)]  # noqa: N806 - a type

    @api.post("/v1/operators")
    def create_operator(body: doc.OperatorIn, _: Operator) -> doc.OperatorOut:
        """Makes an API token. It is shown this once."""
        return add_operator(s.store, s.clock, s.new_id, body.name)

    @api.get("/v1/operators")
    def list_operators(_: Operator) -> list[doc.OperatorOut]:
        """Who has an API token."""
        rows = s.store.read(lambda connection: connection.execute(sa.select(operators)).all())
        return [doc.OperatorOut(name=row.name, created_ms=row.created_ms) for row in rows]

    @api.delete("/v1/operators/{name}", status_code=204)
    def remove_operator(name: str, by: Operator) -> None:
        """Takes an API token's right away."""
        if name == by:
            raise Conflict("this is the token that asks; remove it with another one")
        gone = sa.delete(operators).where(operators.c.name == name)
        if not s.store.write(lambda connection: connection.execute(gone).rowcount):
            raise NotFound(f"there is no operator {name[:64]!r}")

    return api


def _rollout(s: Services, number: int) -> doc.Rollout:
    view = s.rollouts.view(number)
    members = {device for wave in view.rollout.waves for device in wave}
    query = sa.select(devices.c.id, devices.c.name, devices.c.reported).where(devices.c.id.in_(members))
    rows = s.store.read(lambda connection: connection.execute(query).all())
    return views.rollout(view, {row.id: row for row in rows}, views.names(s.registry))


async def _next(chunks: Any) -> bytes | None:
    return cast("bytes | None", await anext(chunks, None))


def add_operator(store: Store, clock: Clock, new_id: Callable[[], str], name: str) -> doc.OperatorOut:
    """Makes an API token. Raises `Conflict` if the name is taken."""
    token, now = f"skerry_{new_id()}", clock.utc().ms
    values = {"name": name, "token_sha256": digest(token), "created_ms": now}

    def insert(connection: sa.Connection) -> None:
        if connection.execute(sa.select(operators.c.id).where(operators.c.name == name)).first():
            raise Conflict(f"there is an operator {name!r} already; choose another name")
        connection.execute(sa.insert(operators).values(**values))

    store.write(insert)
    return doc.OperatorOut(name=name, created_ms=now, token=token)


def _operator(store: Store, bearer: HTTPAuthorizationCredentials | None) -> str:
    if bearer is None:
        raise NotAllowed("expected an API token (Authorization: Bearer …)")
    query = sa.select(operators.c.name).where(operators.c.token_sha256 == digest(bearer.credentials))
    name = store.read(lambda connection: connection.execute(query).scalar_one_or_none())
    if name is None:
        raise NotAllowed("this API token is not known here")
    return str(name)
