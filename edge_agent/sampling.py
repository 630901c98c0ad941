"""Which frames are worth training with: what a model is unsure of, what is new to it, and some by chance. Pure.

uncertain   a whole frame whose best score lies in ``band``, or is less than ``margin`` before the second; or a box
            whose score lies in ``band``
drifting    a source that shows something else than this release saw there before: the population stability index
            between its last 200 frames (P) and those before (Q, at least 1,000), Σ (p - q) ln(p / q), of the labels
            or of the best scores in tenths, whichever is larger, is above ``drift`` (0.25 is commonly taken for a
            change that matters). Labels beyond the nine most frequent ones count as one; half a frame is added to
            each bin.
random      a share of all frames

Budgets hold for any hour and any day that one may pick, not for those of a calendar.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from edge_agent.config import SamplingConfig
from skerry.wire import Answer

UNCERTAIN, DRIFTING, RANDOM = "uncertain", "drifting", "random"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
WINDOW, HISTORY, MEMORY = 200, 1_000, 20_000  # frames: compared, needed to compare with, after which the old ones fade
_LABELS = 9
_EVERY = 10  # frames between two looks at the index
_NOTHING = ""


# --- uncertain -----------------------------------------------------------------------------------------------------


def is_uncertain(answers: Sequence[Answer], band: tuple[float, float] | None, margin: float | None) -> bool:
    """Whether a model is unsure of a frame. ``answers`` of a whole frame are in order, the best first."""
    whole = [answer for answer in answers if answer.box is None]
    asked = [whole[:1], [answer for answer in answers if answer.box is not None]]
    if band is not None and any(band[0] <= answer.score <= band[1] for part in asked for answer in part):
        return True
    return margin is not None and len(whole) > 1 and whole[0].score - whole[1].score < margin


# --- drifting ------------------------------------------------------------------------------------------------------


def psi(recent: Counter[str], before: Counter[str]) -> float:
    """The population stability index between two histograms; 0 if they are alike."""
    named = [label for label, _ in before.most_common(_LABELS)]
    p, q = _binned(recent, named), _binned(before, named)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def _binned(counts: Counter[str], named: Sequence[str]) -> list[float]:
    """Shares of the named labels, and of all others together; never 0."""
    bins = [counts[label] + 0.5 for label in named]
    bins.append(counts.total() - sum(counts[label] for label in named) + 0.5)
    return [value / sum(bins) for value in bins]


class Drift:
    """What one release sees at one source, now and before."""

    def __init__(self) -> None:
        self._window: deque[tuple[tuple[str, ...], str]] = deque()
        self._recent: tuple[Counter[str], Counter[str]] = (Counter(), Counter())  # labels, scores
        self._before: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._frames = self._since = 0
        self.index: float | None = None

    def add(self, answers: Sequence[Answer]) -> float | None:
        """Takes a frame in; the index, or None while there is too little to compare with."""
        shown = tuple(answer.label for answer in answers if answer.box is not None) or tuple(
            answer.label for answer in answers[:1]
        )
        seen = (shown or (_NOTHING,), _tenth(answers))
        self._window.append(seen)
        _count(self._recent, seen, 1)
        if len(self._window) > WINDOW:
            old = self._window.popleft()
            _count(self._recent, old, -1)
            _count(self._before, old, 1)
            self._frames += 1
            self._fade()
        self._since += 1
        if self._frames >= HISTORY and self._since >= _EVERY:
            self._since = 0
            self.index = max(psi(now, then) for now, then in zip(self._recent, self._before, strict=True))
        return self.index

    def _fade(self) -> None:
        """Halves what was long ago, so that a season's change becomes what is usual."""
        if self._frames >= MEMORY:
            self._frames //= 2
            for counts in self._before:
                for key in list(counts):
                    counts[key] //= 2
                    if not counts[key]:
                        del counts[key]


def _tenth(answers: Sequence[Answer]) -> str:
    best = max((answer.score for answer in answers), default=0.0)
    return str(min(9, int(best * 10)))


def _count(counts: tuple[Counter[str], Counter[str]], seen: tuple[tuple[str, ...], str], by: int) -> None:
    for label in seen[0]:
        counts[0][label] += by
    counts[1][seen[1]] += by


# --- budgets -------------------------------------------------------------------------------------------------------


class Taken(msgspec.Struct, frozen=True):
    """A sample that was taken."""

    ms: int
    bytes: int


def recent(taken: Sequence[Taken], now_ms: int) -> list[Taken]:
    """Those of the last day. A clock that went back makes none of them younger than now."""
    return [Taken(min(one.ms, now_ms), one.bytes) for one in taken if one.ms > now_ms - DAY_MS]


def left_bytes(taken: Sequence[Taken], now_ms: int, config: SamplingConfig) -> int:
    """How large a sample may be that is taken now; 0 if none may be.

    Args:
        taken: as `recent` gives them.
    """
    hour = [one.bytes for one in taken if one.ms > now_ms - HOUR_MS]
    day = [one.bytes for one in taken]
    if len(hour) >= config.per_hour or len(day) >= config.per_day:
        return 0
    return max(0, min((config.mib_per_hour << 20) - sum(hour), (config.mib_per_day << 20) - sum(day)))


# --- all of it -----------------------------------------------------------------------------------------------------


class Choice:
    """Which frames are wanted, before budgets."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._release: str | None = None
        self._drifts: dict[str, Drift] = {}
        self._last_s: dict[str, float] = {}

    def why(self, source: str, release: str, answers: Sequence[Answer], now_s: float, draw: float) -> str | None:
        """Why a frame is wanted; None if it is not.

        Args:
            now_s: monotonic.
            draw: a random number from 0 to 1.
        """
        if release != self._release:  # another one sees in its own way
            self._release, self._drifts = release, {}
        index = None
        if self._config.drift is not None:
            index = self._drifts.setdefault(source, Drift()).add(answers)
        if draw < self._config.random:
            return RANDOM
        if now_s - self._last_s.get(source, -math.inf) < self._config.apart_s:
            return None
        if is_uncertain(answers, self._config.band, self._config.margin):
            return UNCERTAIN
        return DRIFTING if index is not None and index > (self._config.drift or math.inf) else None

    def looked(self, source: str, now_s: float) -> None:
        """A frame that was wanted is taken, or may not be: the next hard one is ``apart_s`` later."""
        self._last_s[source] = now_s
