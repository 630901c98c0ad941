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
