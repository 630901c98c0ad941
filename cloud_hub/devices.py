"""The devices of the fleet: how they join, what each should run, what each said last."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import jwt
import msgspec
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization

from cloud_hub.identity import TENANT, Authority, digest, read_csr
from cloud_hub.store import Store
from cloud_hub.tables import claims, devices
from skerry import signing
from skerry.claim import DEVICE_ID, JWT_AUDIENCE, JWT_SECONDS, Broker, Enrolment
from skerry.clock import Clock
from skerry.errors import Conflict, NotAllowed, NotFound
from skerry.wire import Desired, Wish

MAX_SKEW_S = 300  # how far a device's clock may be off

Row = sa.Row[Any]


class Devices:
    """Devices in the store.

    Args:
        broker: what devices are told to connect to.
    """

    def __init__(
        self, store: Store, authority: Authority, broker: Broker, clock: Clock, new_id: Callable[[], str]
    ) -> None:
        self._store, self._authority, self._broker, self._clock, self._new_id = store, authority, broker, clock, new_id

    # Joining

    def create_claim(self, group: str, uses: int, hours: float) -> str:
        """A secret that lets ``uses`` devices join ``group`` within ``hours``. It is shown this once."""
        secret, now = self._new_id(), self._clock.utc().ms
        values = {
            "secret_sha256": digest(secret),
            "group": group,
            "created_ms": now,
            "expires_ms": now + int(hours * 3_600_000),
            "uses_left": uses,
        }
        self._store.write(lambda connection: connection.execute(sa.insert(claims).values(**values)))
        return secret

    def enrol(self, secret: str, csr: str, name: str) -> Enrolment:
        """Makes the owner of the request's key a device. Asking again with the same key gives the same device.

        Raises:
            FormatError: not a usable request.
            NotAllowed: the secret is unknown, used up or too old, or the device was revoked.
        """
        pem = signing.public_pem(read_csr(csr)).decode("ascii")
        row = self._store.write(lambda connection: self._enrol(connection, secret, pem, name))
        return Enrolment(
            device=row.id,
            tenant=TENANT,
            name=row.name,
            certificate=row.certificate,
            ca=self._authority.ca_pem,
            desired_key=self._authority.desired_pem,
            broker=self._broker,
        )

    def _enrol(self, connection: sa.Connection, secret: str, pem: str, name: str) -> Row:
        claim = connection.execute(sa.select(claims).where(claims.c.secret_sha256 == digest(secret))).one_or_none()
        if claim is None:
            raise NotAllowed("this claim token is not known here; ask for a new one: skerry fleet token create")
        known = connection.execute(sa.select(devices).where(devices.c.key == pem)).one_or_none()
        if known is not None and known.revoked_ms is not None:
            raise NotAllowed(f"device {known.id} was revoked; it joins with a new key: start it with empty --data")
        if known is not None:  # its first answer was lost on the way
            return known
        now = self._clock.utc().ms
        if claim.uses_left < 1 or claim.expires_ms < now:
            why = "was used up" if claim.uses_left < 1 else "has run out of time"
            raise NotAllowed(f"this claim token {why}; ask for a new one: skerry fleet token create")
        device = base64.b32encode(bytes.fromhex(self._new_id())).decode("ascii").rstrip("=").lower()
        connection.execute(sa.update(claims).where(claims.c.id == claim.id).values(uses_left=claim.uses_left - 1))
        key = serialization.load_pem_public_key(pem.encode("ascii"))
        certificate = self._authority.certify_device(device, key)  # type: ignore[arg-type] # read_csr saw its type
        values = {
            "id": device,
            "name": name,
            "group": claim.group,
            "key": pem,
            "certificate": certificate,
            "enrolled_ms": now,
        }
        connection.execute(sa.insert(devices).values(**values))
        return connection.execute(sa.select(devices).where(devices.c.id == device)).one()

    def authenticate(self, token: str) -> str:
        """The device that signed the bearer token (ES256 JWT of a minute). Raises `NotAllowed`."""
        try:
            device = str(jwt.decode(token, options={"verify_signature": False}).get("sub"))
            row = self.get(device)
            jwt.decode(
                token, row.key, algorithms=["ES256"], audience=JWT_AUDIENCE, leeway=MAX_SKEW_S,
                options={"require": ["exp", "iat", "sub", "aud"], "verify_iat": True},
            )  # fmt: skip
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, NotFound) as exc:
            raise NotAllowed(f"not a device of this fleet, or its clock is off by minutes: {exc}") from exc
        if row.revoked_ms is not None or claimed["exp"] - claimed["iat"] > JWT_SECONDS:
            raise NotAllowed(f"device {device} was revoked, or asks for too long a time")
        return device

    # Looking

    def all(self, group: str | None = None) -> Sequence[Row]:
        """In the order in which they joined."""
        query = sa.select(devices).order_by(devices.c.enrolled_ms, devices.c.id)
        if group is not None:
            query = query.where(devices.c.group == group)
        return self._store.read(lambda connection: connection.execute(query).all())

    def get(self, device: str) -> Row:
        """Raises `NotFound`."""
        query = sa.select(devices).where(devices.c.id == device)
        row = self._store.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise NotFound(f"there is no device {device[:40]!r}")
        return row

    def find(self, word: str) -> Row:
        """A device by its id, the beginning of it, or its name. Raises `NotFound`, or `Conflict` if several fit."""
        fitting = [
            row for row in self.all() if word in (row.id, row.name) or (len(word) > 3 and row.id.startswith(word))
        ]
        if len(fitting) > 1:
            raise Conflict(f"{len(fitting)} devices are called {word!r}; use an id: {', '.join(r.id for r in fitting)}")
        if not fitting:
            raise NotFound(f"there is no device {word[:40]!r}")
        return fitting[0]

    # Changing

    def revoke(self, device: str) -> None:
        """It gets nothing any more, and nothing that it says is heard."""
        now = self._clock.utc().ms
        self.get(device)
        change = sa.update(devices).where(devices.c.id == device).values(revoked_ms=now, online=False)
        self._store.write(lambda connection: connection.execute(change))

    def clear(self, device: str, release: str) -> None:
        """Takes back the device's rejection of a release: it may try again."""
        self.get(device)
        self._store.write(lambda connection: _next_version(connection, device, cleared=[release]))


def is_device_id(text: str) -> bool:
    """Whether ``text`` could be the id of a device."""
    return DEVICE_ID.fullmatch(text) is not None


def wishes_of(row: Row) -> dict[str, Wish]:
    """What the device should run, by app."""
    return msgspec.json.decode(row.apps, type=dict[str, Wish])


def desired_of(row: Row) -> Desired:
    """The wish that the device should hold."""
    return Desired(
        version=row.desired_version,
        apps=wishes_of(row),
        cleared=msgspec.json.decode(row.cleared, type=list[str]),
        device=row.id,
    )


def wish(connection: sa.Connection, device: str, app: str, wanted: Wish | None) -> None:
    """Changes what a device should run, inside a transaction. Wishing the same again changes nothing."""
    row = connection.execute(sa.select(devices.c.apps).where(devices.c.id == device)).one()
    apps = msgspec.json.decode(row.apps, type=dict[str, Wish])
    after = {**apps, app: wanted} if wanted is not None else {name: w for name, w in apps.items() if name != app}
    if after != apps:
        _next_version(connection, device, apps=after)


def _next_version(
    connection: sa.Connection, device: str, *, apps: dict[str, Any] | None = None, cleared: Sequence[str] = ()
) -> None:
    """The next version is above every one that was ever given, also by a hub whose disk was restored since."""
    row = connection.execute(sa.select(devices).where(devices.c.id == device)).one()
    changed = {} if apps is None else {"apps": msgspec.json.encode(apps)}
    version = max(row.desired_version, row.seen_version) + 1
    unseen = msgspec.json.decode(row.cleared, type=list[str]) if row.seen_version < row.desired_version else []
    together = list(dict.fromkeys([*unseen, *cleared]))
    values = {"desired_version": version, "cleared": msgspec.json.encode(together), **changed}
    connection.execute(sa.update(devices).where(devices.c.id == device).values(**values))


def raise_above(connection: sa.Connection, row: Row, seen_version: int) -> None:
    """A device that has seen more than the hub remembers giving is given the hub's wish anew, above it."""
    if seen_version > row.desired_version and wishes_of(row):
        _next_version(connection, row.id)
