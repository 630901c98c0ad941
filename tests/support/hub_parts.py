"""The hub's services on a folder, without its network: for tests of what they answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from cloud_hub.api import make_app
from cloud_hub.blobs import Blobs
from cloud_hub.devices import Devices, desired_of
from cloud_hub.identity import TENANT, Authority
from cloud_hub.inbound import Inbound, Outgoing
from cloud_hub.pictures import PicturesOf
from cloud_hub.registry import Registry
from cloud_hub.rollouts.service import Rollouts
from cloud_hub.routes import Services, add_operator
from cloud_hub.store import Store
from cloud_hub.tables import TABLES
from skerry.claim import Broker
from skerry.clock import Trust, Utc, new_id
from skerry.disk import Disk, nowhere
from skerry.messages import Sent, desired_path, pack, seal_desired


class HandClock:
    """Moves when a test says so."""

    def __init__(self) -> None:
        self.ms = 1_795_500_000_000

    def utc(self) -> Utc:
        return Utc(self.ms, Trust.RTC)

    def monotonic(self) -> float:
        return self.ms / 1000


@dataclass
class Parts:
    """Everything, and an operator's HTTP client."""

    services: Services
    inbound: Inbound
    clock: HandClock
    http: TestClient
    token: str

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, **more: Any) -> Any:
        bearer = {"authorization": f"Bearer {token or self.token}"}
        return self.http.request(method, path, json=body, headers=bearer, **more)

    def say(self, topic: Any, device: str, body: Any, mono_ms: int = 1) -> list[Outgoing]:
        """A device's message, and the hub's answers."""
        sent = Sent(utc_ms=self.clock.ms, mono_ms=mono_ms, boot="b", trust=Trust.RTC)
        return self.inbound.take([(topic.path(TENANT, device), pack(topic.kind, body, sent, "i"))])


@contextmanager
def hub_parts(folder: Path) -> Iterator[Parts]:
    disk, clock = Disk(), HandClock()
    with Store(folder / "hub.db", TABLES) as store:
        authority = Authority(folder / "keys", disk, clock)
        blobs = Blobs(folder / "blobs", disk, new_id)
        services = Services(
            store=store,
            authority=authority,
            blobs=blobs,
            pictures=PicturesOf(folder / "pictures", disk, new_id, max_device=4300),
            samples=PicturesOf(folder / "samples", disk, new_id),
            registry=Registry(store, blobs, clock),
            devices=Devices(store, authority, Broker(host="localhost", port=8883), clock, new_id),
            rollouts=Rollouts(store, clock, nowhere),
            clock=clock,
            new_id=new_id,
            public_url="https://localhost:8443",
            run="run",
            broker_up=lambda: True,
        )

        def wish(row: Any) -> Outgoing | None:
            if not row.desired_version:
                return None
            return Outgoing(desired_path(TENANT, row.id), seal_desired(desired_of(row), authority.desired))

        numbers = itertools.count()
        inbound = Inbound(store, clock, "boot", lambda: str(next(numbers)), wish, nowhere)
        token = add_operator(store, clock, new_id, "first").token or ""
        with TestClient(make_app(services), raise_server_exceptions=False) as http:
            yield Parts(services, inbound, clock, http, token)


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """A certificate request, PEM."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def join(parts: Parts, name: str = "cam", group: str = "default") -> tuple[str, ec.EllipticCurvePrivateKey]:
    """A device that has joined: its id and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    secret = parts.services.devices.create_claim(group, 1, 1)
    return parts.services.devices.enrol(secret, request_for(key), name).device, key
