"""The documents of the hub's REST API, version 1: what the hub serves and the client reads, defined once.

Times are integer milliseconds since 1970, UTC, by the hub's clock. Null means unknown or not measured.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hexadecimal")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="letters, digits and . _ -")]
Size = Annotated[
    str, Field(max_length=16, pattern=r"^[0-9.]+%?$", description="a count such as 3, or a share such as 25%")
]
Action = Literal["start", "pause", "resume", "take-back", "abort"]
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Document(BaseModel):
    """Base of all: fields that a request does not have are refused, so that no misspelling goes unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Health(BaseModel):
    """Whether the hub works."""

    version: str
    run: str
    broker: bool = Field(description="whether the hub is connected to its broker")


class ClaimIn(Document):
    """A claim token to make."""

    group: Name = "default"
    uses: Annotated[int, Field(ge=1, le=100_000)] = 1
    hours: Annotated[float, Field(gt=0, le=8760)] = 24.0


class ClaimOut(BaseModel):
    """What a claim token is made of. The secret is shown this once."""

    url: str
    ca_sha256: str
    secret: str
    group: str
    uses: int


class EnrolIn(Document):
    """A device's request to join."""

    secret: Annotated[str, Field(max_length=128)]
    csr: Annotated[str, Field(max_length=8192, description="certificate request for a P-256 key, PEM")]
    name: Name


class BrokerOut(BaseModel):
    """Where the device's messages go."""

    host: str
    port: int
    protocol: Literal["3.1.1", "5"]


class EnrolOut(BaseModel):
    """What a device gets when it joined (skerry.claim.Enrolment)."""

    device: str
    tenant: str
    name: str
    certificate: str
    ca: str
    desired_key: str
    broker: BrokerOut


class OperatorIn(Document):
    """An operator's API token to make."""

    name: Name


class OperatorOut(BaseModel):
    """An operator."""

    name: str
    created_ms: int
    token: str | None = Field(default=None, description="shown once, when it is made")


class Device(BaseModel):
    """A device: what it is, what it should run, what it said last."""

    id: str
    name: str
    group: str
    enrolled_ms: int
    revoked: bool
    online: bool
    heard_ms: int | None
    agent: str | None = Field(description="version of its agent")
    seen_version: int = Field(description="newest wish that it acted on")
    desired_version: int = Field(description="newest wish that it was given")
    wanted: str | None = Field(description="release that its main app should run: name@version, or id")
    active: str | None = Field(description="release that its main app runs")
    state: str | None = Field(description="where its update cycle stands")
    reported: dict[str, Any] | None = Field(description="its last report, as it came")


class Stream(BaseModel):
    """One of a device's event logs."""

    id: str
    last_seq: int
    lost: int = Field(description="events that the device's full disk dropped before they could be sent")


class ClearIn(Document):
    """A rejection to take back."""

    release: Annotated[str, Field(max_length=128)]


class ReleaseIn(Document):
    """A release whose blobs are all there."""

    manifest: Digest
    signature: Digest


class MissingIn(Document):
    """Which blobs of a release are missing?"""

    signature: Digest


class MissingOut(BaseModel):
    """The blobs that the hub does not have yet."""

    missing: list[str]


class Release(BaseModel):
    """A release that the hub knows."""

    id: str
    name: str
    version: int
    signature: str = Field(description="blob of bundle.sig; the manifest's blob has the release's id")
    signer: str
    pushed_ms: int


class Policy(Document):
    """What a wave must show before the next one opens."""

    soak_s: Annotated[int, Field(ge=0, le=10**7)] = 600
    max_harmed: Annotated[int, Field(ge=0, le=10**6)] = 0
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    offline_after_s: Annotated[int, Field(ge=1, le=10**7)] = 900
    clock_s: Annotated[int, Field(ge=1, le=10**8)] = 86_400


class RolloutIn(Document):
    """A rollout to draft."""

    release: Annotated[str, Field(max_length=128, description="name@version or id")]
    group: Name | None = Field(default=None, description="whose devices; null for all")
    canary: Size = "1"
    waves: Annotated[list[Size], Field(max_length=32)] = ["100%"]
    policy: Policy = Policy()


class WaveDevice(BaseModel):
    """How one device of a rollout stands to the release, by what it reported."""

    device: str
    name: str
    standing: str
    active: bool
    proved: bool
    kept: bool
    soaked_s: float
    heard_s: float | None
    harm: str | None
    time_ms: float | None = Field(description="median of one frame in its own proof")
    before: str | None = Field(description="release that it would be taken back to")


class Step(BaseModel):
    """A line of the decision log."""

    step: int
    at_ms: int
    event: str
    state: str
    wave: int
    why: str


class Verdict(BaseModel):
    """What the judge says at this moment."""

    says: str
    numbers: str


class RolloutLine(BaseModel):
    """A rollout in a list."""

    id: int
    release: str
    state: str
    wave: int
    waves: int
    devices: int
    created_ms: int
    due_ms: int | None


class Rollout(RolloutLine):
    """A rollout, with everything that its decisions stand on."""

    app: str
    release_id: str
    policy: Policy
    members: list[list[WaveDevice]] = Field(description="by wave")
    verdict: Verdict | None
    log: list[Step]


class Event(BaseModel):
    """An event as a device accepted it."""

    id: int
    device: str
    stream: str
    seq: int
    received_ms: int
    event: dict[str, Any]


class Events(BaseModel):
    """A page of events; ask again with ``after`` = ``next``."""

    events: list[Event]
    next: int
