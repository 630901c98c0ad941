"""What the device says of itself to the hub: made anew each time, of the record and the counters."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge_agent.counts import Counts
from skerry.messages import AppReport, Health, Reported
from skerry.update import Record, State
from skerry.wire import MAIN_APP, ProofReport

_WHY_LENGTH = 400  # of a rejection's reason; 64 of them must fit a message


class Reporter:
    """Makes reports of one app. Call it at least once a second or so: it times what it sees.

    Args:
        total: what became of all frames so far.
        proof: what a release's proof measured here.
    """

    def __init__(
        self,
        record: Callable[[], Record],
        total: Callable[[], Counts],
        proof: Callable[[str], list[ProofReport]],
        monotonic: Callable[[], float],
    ) -> None:
        self._record, self._total, self._proof, self._monotonic = record, total, proof, monotonic
        self._live: str | None = None
        self._since = Counts()
        self._kept_at: float | None = None
        self._proofs: list[ProofReport] = []

    def __call__(self) -> Reported:
        record = self._record()
        active = record.active.release if record.active is not None else None
        if active != self._live:
            self._live, self._since, self._kept_at = active, self._total(), None
            self._proofs = self._proof(active) if active is not None else []
        kept = active is not None and record.state is State.IDLE and record.good == record.active
        if not kept:
            self._kept_at = None
        elif self._kept_at is None:
            self._kept_at = self._monotonic()
        app = AppReport(
            state=record.state.value,
            attempt=record.attempt,
            target=record.target,
            active=active,
            good=record.good.release if record.good is not None else None,
            variant=record.active.variant if record.active is not None else None,
            proof=self._proofs,
            health=self._health(active),
        )
        rejected = {release: why[:_WHY_LENGTH] for release, why in record.rejected.items()}
        return Reported(seen_version=record.seen_version, apps={MAIN_APP: app}, rejected=rejected)

    def _health(self, active: str | None) -> Health | None:
        if active is None:
            return None
        counts = self._total() - self._since
        return Health(
            release=active,
            kept_s=0.0 if self._kept_at is None else self._monotonic() - self._kept_at,
            captured=max(0, counts.captured),
            processed=max(0, counts.processed),
            superseded=max(0, counts.superseded),
            failed=max(0, counts.failed),
        )


def same(a: Reported, b: Reported) -> bool:
    """Whether two reports differ in nothing but the numbers that always move."""
    return _still(a) == _still(b)


def _still(reported: Reported) -> Reported:
    apps = {name: msgspec.structs.replace(app, health=None) for name, app in reported.apps.items()}
    return msgspec.structs.replace(reported, apps=apps)
