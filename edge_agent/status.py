"""What an agent says about itself, for people and monitors (edge_agent.api)."""

from __future__ import annotations

import msgspec

from skerry.update import Record
from skerry.wire import ProofReport


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


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One receiver of events.

    Attributes:
        delivered: the last event that it has; ``waiting`` are those behind it.
        lost: events that the full outbox dropped before it had them; since the start.
        skipped: events that it refused again and again, and was not given any more; since the start.
    """

    delivered: int
    waiting: int
    lost: int
    skipped: int
    failing: str | None


class PicturesStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures of one kind that are kept on this device. Counts are since the start, but for what is kept and waits.

    Attributes:
        kept, bytes: what lies on the disk now.
        missed: were wanted and not made: too many at once, or the disk refused.
        withheld: the privacy policy let nothing out.
        dropped: went for newer ones, over the quota; ``unsent`` of them before the hub had them.
        waiting: are still to be sent to the hub.
        refused: the hub does not want them.
    """

    kept: int
    bytes: int
    missed: int
    withheld: int
    dropped: int
    unsent: int
    waiting: int
    sent: int
    refused: int
    failing: str | None


class OutboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since the outbox was made, but for ``lost`` and ``unrecorded``: since the agent started.

    Attributes:
        delivered: the last event that every sink has.
    """

    stream: str
    accepted: int
    delivered: int
    lost: int
    unrecorded: int
    failing: str | None
    sinks: dict[str, SinkStatus] = {}


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
    pictures: dict[str, PicturesStatus] = {}
