"""Keeps hard frames to train with: what sampling chooses, the budgets allow and the privacy gate lets out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.config import SamplingConfig
from edge_agent.darkroom import FAILURES, Darkroom, status
from edge_agent.gate import SAMPLE, Gate
from edge_agent.mailbox import Captured
from edge_agent.pictures import Pictures, encode_jpeg
from edge_agent.sampling import Choice, Taken, left_bytes, recent
from edge_agent.status import PicturesStatus
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.execution.processing import Frame
from skerry.wire import Answer, Sample, encode

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tools:
    """What sampling works with; the composition root makes it.

    Attributes:
        ledger: the file of what was taken in the last day: budgets hold across restarts.
        draw: a random number from 0 to 1.
    """

    darkroom: Darkroom
    pictures: Pictures
    ledger: Path
    disk: Disk
    clock: Clock
    draw: Callable[[], float]


class Sampler:
    """Hears of every answered frame (an `edge_agent.vision.Emit`).

    Attributes:
        gate: what may leave; may be replaced while frames come.
        missed, withheld: frames that were wanted and not kept, and not let out.
    """

    def __init__(self, config: SamplingConfig, gate: Gate, tools: Tools) -> None:
        self._config, self.gate, self._t = config, gate, tools
        self._choice = Choice(config)
        self._taken = self._load()
        self.missed = self.withheld = 0
        self.failing: str | None = None
        if not gate.allows(SAMPLE):
            _log.warning('sampling: privacy.allow does not name "%s", so nothing is kept', SAMPLE)

    def seen(self, frame: Captured, release: str, answers: list[Answer]) -> None:
        """Has a frame kept, if it is worth it."""
        now_s, now_ms = self._t.clock.monotonic(), self._t.clock.utc().ms
        why = self._choice.why(frame.source, release, answers, now_s, self._t.draw())
        if why is None or not self.gate.allows(SAMPLE):
            return
        self._choice.looked(frame.source, now_s)
        reason = why
        if left_bytes(recent(self._taken, now_ms), now_ms, self._config) and not self._t.darkroom.make(
            lambda: self._keep(frame, release, answers, reason)
        ):
            self.missed += 1

    def no_verdict(self, source: str, frame: Captured | None, why: str, release: str | None = None) -> None:
        """A frame without an answer teaches nothing."""

    def status(self, sent: int, refused: int) -> PicturesStatus:
        """How samples fare."""
        return status(self._t.pictures, self.missed, self.withheld, sent, refused, self.failing)

    def _keep(self, frame: Captured, release: str, answers: Sequence[Answer], why: str) -> None:
        """In the darkroom's thread."""
        try:
            pixels = self.gate.open(SAMPLE, frame, answers)
            if pixels is None:
                self.withheld += 1
                return
            self._store(pixels, frame, release, answers, why)
        except FAILURES as exc:
            if self.failing is None:
                _log.error("samples are not kept: %s", exc)
            self.failing = str(exc)
            self.missed += 1
        else:
            self.failing = None

    def _store(self, pixels: Frame, frame: Captured, release: str, answers: Sequence[Answer], why: str) -> None:
        """Counts first, then keeps: a crash between the two costs a sample, never the budget."""
        raw, picture = encode_jpeg(pixels, self._config.quality)
        sample = encode(
            Sample(
                why=why,
                picture=picture,
                source=frame.source,
                frame=frame.number,
                release=release,
                answers=list(answers),
                utc_ms=frame.utc.ms,
                trust=frame.utc.trust,
                mono_ms=int(frame.mono_s * 1000),
            )
        )
        size, now_ms = len(raw) + len(sample), self._t.clock.utc().ms
        taken = recent(self._taken, now_ms)
        if size > left_bytes(taken, now_ms, self._config) or self._t.pictures.holds(picture.sha256):
            return
        taken.append(Taken(now_ms, size))
        self._t.disk.replace(self._t.ledger, msgspec.json.encode(taken))
        self._taken = taken
        self._t.pictures.put(raw, picture.sha256, sample)

    def _load(self) -> list[Taken]:
        try:
            return msgspec.json.decode(self._t.ledger.read_bytes(), type=list[Taken])
        except (FileNotFoundError, msgspec.DecodeError):
            return []
