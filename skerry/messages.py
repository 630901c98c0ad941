"""What device and hub send each other over MQTT: topics, the envelope, and what is in it. Each is defined here once.

``skerry/1/{tenant}/{device}/up/…`` is written by the device and read by the hub, ``…/down/…`` the other way round: an
ACL needs two lines. Nothing relies on retained messages or on queues in the broker; 3.1.1 is enough. Payloads are JSON,
at most `MAX_MESSAGE` bytes, with finite numbers; null means not measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from skerry import dsse
from skerry.clock import Trust
from skerry.documents import parse
from skerry.errors import BadSignature, FormatError
from skerry.wire import Desired, ProofReport, decode_desired, encode

MAX_MESSAGE = 64 << 10
MAX_BATCH = 48 << 10  # bytes of events in a batch: leaves room for the envelope
MAX_STREAMS = 16
VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]

_TENANT = re.compile(r"[a-z0-9-]{1,32}")
_DEVICE = re.compile(r"[a-z2-7]{26}")  # base32, given by the hub, never used again


# --- what is said --------------------------------------------------------------------------------------------------


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """A device's link is up. The hub answers with what it wants and what it has.

    Attributes:
        run: of the agent's process; a new one after each start.
        streams: its event logs that the hub has not got whole, oldest first; the last one is live.
        seen_version: of the newest wish that it holds; the hub's next one is above.
    """

    agent: str
    run: str
    streams: Annotated[list[str], msgspec.Meta(max_length=MAX_STREAMS)]
    seen_version: Count
    arch: str
    cpu: list[str]
    backends: list[str]


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """A device's link is down: said by the device when it stops in order, by the broker (as its will) when not."""

    run: str
    in_order: bool


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a release fares in service, since it went live in this run.

    Attributes:
        kept_s: how long ago its probation was passed, or this run began, if that was later; 0 before.
    """

    release: str
    kept_s: float
    captured: Count
    processed: Count
    superseded: Count
    failed: Count


class AppReport(msgspec.Struct, frozen=True, kw_only=True):
    """One app: where its update cycle stands (skerry.update), what proved, how it fares.

    Attributes:
        proof: of the release in service, or of the one on its way in if that is further.
    """

    state: str
    attempt: Count
    target: str | None
    active: str | None
    good: str | None
    variant: str | None
    proof: list[ProofReport]
    health: Health | None


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is. ``rejected`` says why, by release."""

    seen_version: Count
    apps: dict[str, AppReport]
    rejected: dict[str, str]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Events in order, numbered from ``first_seq`` on; ``lost`` ones before it were evicted from a full outbox."""

    stream: str
    first_seq: Annotated[int, msgspec.Meta(ge=1)]
    lost: Count
    events: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.events) - 1


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """The hub holds every event of the stream up to ``last_seq``."""

    stream: str
    last_seq: Count


class Rebirth(msgspec.Struct, frozen=True, kw_only=True):
    """The hub knows nothing of this device's run, and wants its birth again."""


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a hub listens; ``run`` is of its process."""

    online: bool
    run: str


# --- where it is said ----------------------------------------------------------------------------------------------

B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True)
class Topic(Generic[B]):
    """A kind of message between one device and the hub, and its type."""

    direction: Literal["up", "down"]
    kind: str
    body: type[B]
    qos: int = 1

    def path(self, tenant: str, device: str) -> str:
        """Where one device's messages go. Raises `FormatError` for what no topic may hold."""
        if not _TENANT.fullmatch(tenant) or not _DEVICE.fullmatch(device):
            raise FormatError(
                f"tenant {tenant!r} or device {device!r} is no name: expected a-z 0-9 -, and 26 of a-z 2-7"
            )
        return f"skerry/1/{tenant}/{device}/{self.direction}/{self.kind}"

    def every_device(self, tenant: str) -> str:
        """The filter that the hub subscribes to."""
        return f"skerry/1/{tenant}/+/{self.direction}/{self.kind}"

    def device(self, tenant: str, path: str) -> str | None:
        """Whose message came at ``path``; None if it is not of this topic."""
        before, after = f"skerry/1/{tenant}/", f"/{self.direction}/{self.kind}"
        device = path[len(before) : len(path) - len(after)]
        fits = path.startswith(before) and path.endswith(after) and _DEVICE.fullmatch(device)
        return device if fits else None


BIRTH = Topic("up", "birth", Birth)
DEATH = Topic("up", "death", Death)
REPORTED = Topic("up", "reported", Reported)
EVENTS = Topic("up", "events", Batch)
ACK = Topic("down", "ack", Ack)
REBIRTH = Topic("down", "rebirth", Rebirth)


def hub_status(tenant: str) -> str:
    """The topic of `HubStatus`."""
    return f"skerry/1/{tenant}/hub/status"


# --- the wish: signed by the hub, so that neither broker nor stranger can make one ---------------------------------

_DESIRED_TYPE = "application/vnd.skerry.desired+json"


def desired_path(tenant: str, device: str) -> str:
    """The topic of a device's wish. Its payload is no envelope but what `seal_desired` made."""
    return ACK.path(tenant, device).removesuffix(ACK.kind) + "desired"


def seal_desired(desired: Desired, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The wish for one device, signed (DSSE). Raises `FormatError` if it is too large."""
    raw = dsse.seal(_DESIRED_TYPE, encode(desired), key)
    _hold_to_size("desired", raw)
    return raw


def open_desired(raw: bytes, key: ec.EllipticCurvePublicKey, device: str) -> Desired:
    """The wish, if the hub that this device enrolled with signed it, for this device.

    Raises:
        FormatError: it is too large, or not a signed wish.
        BadSignature: somebody else made it, or it is another device's.
    """
    _hold_to_size("desired", raw)
    desired = decode_desired(dsse.unseal(raw, _DESIRED_TYPE, key))
    if desired.device != device:
        raise BadSignature(f"a wish for device {desired.device or '(none)'}, not for {device}")
    return desired


# --- how it is said ------------------------------------------------------------------------------------------------


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """When a message was sent: wall clock with its trust, and the clock of that boot, which never goes back."""

    utc_ms: int
    mono_ms: int
    boot: str
    trust: Trust


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """Around every body. ``id`` tells a repeat from a second message that says the same."""

    v: int
    kind: str
    id: str
    sent: Sent
    body: msgspec.Raw


def pack(kind: str, body: msgspec.Struct, sent: Sent, message_id: str) -> bytes:
    """The payload of one message.

    Raises:
        FormatError: it is too large, or holds a number that is not finite.
    """
    inner = msgspec.json.encode(body)
    parse(inner, type(body), f"{kind} holds a number that is not finite")  # JSON made it null
    raw = msgspec.json.encode(Envelope(v=VERSION, kind=kind, id=message_id, sent=sent, body=msgspec.Raw(inner)))
    _hold_to_size(kind, raw)
    return raw


def unpack(kind: str, body: type[B], raw: bytes) -> tuple[Envelope, B]:
    """The envelope and what is in it.

    Raises:
        FormatError: it is too large, of another version or kind, or not of its schema.
    """
    _hold_to_size(kind, raw)
    envelope = parse(raw, Envelope, f"a message at {kind}")
    if envelope.v != VERSION:
        raise FormatError(f"{kind} is of version {envelope.v}, this Skerry reads {VERSION}: update the older side")
    if envelope.kind != kind:
        raise FormatError(f"a message at {kind} says that it is {envelope.kind!r}")
    return envelope, parse(bytes(envelope.body), body, kind)


def _hold_to_size(kind: str, raw: bytes) -> None:
    if len(raw) > MAX_MESSAGE:
        raise FormatError(f"{kind} has {len(raw)} bytes; {MAX_MESSAGE} are the most")


def fitting(events: Iterable[bytes], limit: int = MAX_BATCH) -> int:
    """How many of the events go into one batch: at least one, so that a large one does not block the rest."""
    total = count = 0
    for event in events:
        total += len(event) + 1  # and a comma
        if total > limit and count:
            break
        count += 1
    return count
