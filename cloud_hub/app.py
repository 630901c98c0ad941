"""The composition root of the hub: makes everything, passes it down, runs it, stops it in order."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import random  # noqa: TID251 - the composition root
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from cloud_hub.api import make_app
from cloud_hub.blobs import Blobs
from cloud_hub.broker import EmbeddedBroker, Settings, embedded
from cloud_hub.devices import Devices
from cloud_hub.identity import TENANT, Authority, Pair
from cloud_hub.inbound import Inbound
from cloud_hub.link import HubLink, Who, Wishes
from cloud_hub.pictures import PicturesOf
from cloud_hub.registry import Registry
from cloud_hub.rollouts.service import Rollouts
from cloud_hub.routes import Services, add_operator
from cloud_hub.store import Store
from cloud_hub.tables import TABLES, operators
from skerry import mqtt
from skerry.backoff import Backoff
from skerry.claim import Broker
from skerry.clock import SystemClock, boot_id, new_id
from skerry.disk import Disk, Reached
from skerry.errors import HubError, SkerryError, UsageError

_log = logging.getLogger(__name__)

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class HubConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `skerry hub serve` is told.

    Attributes:
        names: what the hub is reached by; the first is given to devices.
        broker: an external broker; None for the embedded one.
        broker_at: where devices reach the broker, if that is elsewhere.
        tick_s: how often open rollouts are looked at.
    """

    data: str
    host: str = "0.0.0.0"  # noqa: S104 - devices come from elsewhere; TLS and tokens stand at every door
    port: Port = 8443
    mqtt_port: Port = 8883
    names: tuple[str, ...] = ("localhost",)
    broker: Broker | None = None
    broker_at: Broker | None = None
    tick_s: float = 1.0


class Operator(msgspec.Struct, frozen=True):
    """How the first operator reaches the hub (skerry.fleet.client.Profile)."""

    url: str
    ca: str
    token: str


@dataclass(frozen=True)
class Parts:
    """What everything stands on."""

    store: Store
    disk: Disk
    clock: SystemClock
    reached: Reached


@contextlib.contextmanager
def locked(data: Path, disk: Disk) -> Iterator[None]:
    """Holds the hub's folder for one process. Raises `UsageError` if another one holds it."""
    disk.make_dirs(data)
    path = data / "hub.lock"
    disk.append(path).close()
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another hub runs on {data}; stop it, or give this one another --data") from None
        yield


def serve(config: HubConfig, profile: Path | None, reached: Reached, say: Callable[[str], object]) -> int:
    """Runs the hub until it is told to stop.

    Args:
        profile: where the first operator's profile is also put, if nothing is there.
    """
    data, disk, clock = Path(config.data).absolute(), Disk(), SystemClock()
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(data, disk))
        authority = Authority(data / "keys", disk, clock)
        names = tuple(dict.fromkeys([*config.names, "localhost", "127.0.0.1"]))
        server = authority.server(names)
        listener = stack.enter_context(_listen(config.host, config.port))
        public_url = f"https://{names[0]}:{listener.getsockname()[1]}"
        store = stack.enter_context(Store(data / "hub.db", TABLES))
        for line in _first_operator(store, authority, disk, data, public_url, profile):
            say(line)
        broker, child = _broker(config, authority, server, stack)
        services, link = _build(Parts(store, disk, clock, reached), authority, broker, config, public_url)

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.run)
                tasks.start_soon(_tick, services.rollouts, link, clock, config.tick_s)
                if child is not None:
                    tasks.start_soon(_keep_broker, child, clock)
                say(f"the hub is at {public_url}/ and its broker at {broker.host}:{broker.port}; Ctrl-C stops it")
                yield
                tasks.cancel_scope.cancel()

        app = make_app(services, lifespan)
        settings = uvicorn.Config(
            app,
            ssl_certfile=server.certificate,
            ssl_keyfile=server.key,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, lambda *_: None)  # uvicorn stops in order, and then raises it again: we are not done
        uvicorn.Server(settings).run([listener])
    return 0


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket of our own, so that its port is known before anything is told of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family, backlog=1024) as listener:
            yield listener
    except OSError as exc:
        raise HubError(f"cannot listen on {host}:{port}: {exc.strerror}; give another address or --port") from exc


def _broker(
    config: HubConfig, authority: Authority, server: Pair, stack: contextlib.ExitStack
) -> tuple[Broker, EmbeddedBroker | None]:
    if config.broker is not None:
        return config.broker, None
    settings = Settings(
        host=config.host,
        port=config.mqtt_port,
        tenant=TENANT,
        ca=str(authority.ca),
        certificate=str(server.certificate),
        key=str(server.key),
    )
    child, port = stack.enter_context(embedded(settings))
    child.settings = msgspec.structs.replace(settings, port=port)  # the same again, if it must be started anew
    return Broker(host=config.names[0], port=port), child


def _build(
    parts: Parts, authority: Authority, broker: Broker, config: HubConfig, public_url: str
) -> tuple[Services, HubLink]:
    store, disk, clock = parts.store, parts.disk, parts.clock
    run, boot = new_id(), boot_id()
    wishes = Wishes(store, authority, clock)
    inbound = Inbound(store, clock, boot, new_id, wishes.of, parts.reached)
    client = authority.client()
    context = mqtt.tls(authority.ca, client.certificate, client.key)
    uniform = random.SystemRandom().uniform
    link = HubLink(broker, context, inbound, wishes, clock, Backoff(0.2, 5.0, uniform), Who(run, boot, new_id))
    data = Path(config.data).absolute()
    blobs = Blobs(data / "blobs", disk, new_id)
    services = Services(
        store=store,
        authority=authority,
        blobs=blobs,
        pictures=PicturesOf(data / "pictures", disk, new_id),
        samples=PicturesOf(data / "samples", disk, new_id),
        registry=Registry(store, blobs, clock),
        devices=Devices(store, authority, config.broker_at or broker, clock, new_id),
        rollouts=Rollouts(store, clock, parts.reached),
        clock=clock,
        new_id=new_id,
        public_url=public_url,
        run=run,
        broker_up=lambda: link.up,
    )
    return services, link


async def _tick(rollouts: Rollouts, link: HubLink, clock: SystemClock, tick_s: float) -> None:
    """Looks at the open rollouts, again and again. What fails is logged, and looked at again."""
    while True:
        try:
            if await anyio.to_thread.run_sync(rollouts.tick):
                link.wishes_changed()
        except SkerryError as exc:
            _log.error("rollouts cannot be looked at: %s", exc)
        await clock.wait(tick_s)


async def _keep_broker(child: EmbeddedBroker, clock: SystemClock) -> None:
    while True:
        await clock.wait(0.5)
        if not child.running:
            _log.error("the broker ended; starting it again")
            try:
                await anyio.to_thread.run_sync(child.start)
            except HubError as exc:
                _log.error("%s", exc)
                await clock.wait(2.0)


def _first_operator(
    store: Store, authority: Authority, disk: Disk, data: Path, url: str, profile: Path | None
) -> Iterator[str]:
    """Makes the first operator's token, if there is none yet, and puts it where `skerry fleet` looks."""
    own = data / "operator.json"
    if own.exists():
        before = msgspec.json.decode(own.read_bytes(), type=Operator)
        if before.url != url:  # another port or name since
            disk.replace(own, msgspec.json.encode(msgspec.structs.replace(before, url=url)), mode=0o600)
    elif store.read(lambda connection: connection.execute(sa.select(operators.c.id)).first()) is None:
        made = add_operator(store, SystemClock(), new_id, "first")
        disk.replace(own, msgspec.json.encode(Operator(url, authority.ca_pem, str(made.token))), mode=0o600)
    else:
        # it was made and then lost, or the hub was cut off between the two: tokens are stored as digests only
        store.write(lambda connection: connection.execute(sa.delete(operators).where(operators.c.name == "first")))
        made = add_operator(store, SystemClock(), new_id, "first")
        disk.replace(own, msgspec.json.encode(Operator(url, authority.ca_pem, str(made.token))), mode=0o600)
    if profile is not None and not profile.exists():
        disk.make_dirs(profile.parent)
        disk.replace(profile, own.read_bytes(), mode=0o600)
        yield f"`skerry fleet` on this machine uses this hub ({profile})"
    elif profile is None or profile.read_bytes() != own.read_bytes():
        yield f"`skerry fleet --hub {own}` uses this hub"
