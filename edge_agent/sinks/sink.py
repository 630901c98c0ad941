"""What a receiver of events is. Only accepted events come to it, in order; after a crash or refusal some come again."""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.segments import BATCH_BYTES
from skerry.wire import Stored


class Sink:
    """A receiver. Called by one thread, its own.

    Attributes:
        name: what its place in the outbox is called after.
        limit: bytes of events that it is given at once; always one event at least.
        longest_pause_s: between attempts, when it fails again and again.
        idle_s: how often it is given no events, to look after its connection; None: never.
        skipped: events that it gave up on.
    """

    name = "sink"
    limit = BATCH_BYTES
    longest_pause_s = 1.0
    idle_s: float | None = None
    skipped = 0

    def deliver(self, events: Sequence[Stored]) -> None:
        """Returns when the events are there for good. Raises `SkerryError` if they could not be; they come again."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what it holds open. There may be nothing."""
