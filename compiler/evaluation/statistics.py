"""What a difference between two models is worth, given the samples that it was seen on. Pure, and the same every time.

Every bound is the upper end of a one-sided 95 % interval of a *paired* difference: both models answer the same samples,
so what they have in common falls out. An `Interval` has two such ends, of 97.5 % each: for who compares without a side.

- *Answers that are right or wrong*: exact. The unconditional test of a paired difference of proportions (Hsueh, Liu,
  Chen, Biometrics 57:478, 2001) with the score statistic (Tango, Statistics in Medicine 17:891, 1998), inverted. What
  it does not know, how often the two disagree at all, is taken at its worst within a 99.9 % interval, and the 0.1 % is
  paid for (Berger and Boos, JASA 89:1012, 1994). The score interval alone promises too much where few are discordant.
- *Average precision*: see compiler/evaluation/bootstrap.py.
- *Time*: order statistics (David and Nagaraja, "Order Statistics", 3rd ed., 7.1) of the medians of blocks of
  neighbouring rounds: rounds are not independent, a machine is slow for seconds. A bootstrap over the same blocks
  covered 94 times in 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = Floats | NDArray[np.int64] | float

ERROR = 0.05  # of every bound
MIN_BLOCKS = 30
SLOWER = 0.97  # a variant is faster if the upper bound of its paired time ratio stays below
BUSY = 0.8  # a machine is, if less of a processor is to be had
# What a busy machine may do to a ratio of processor times, by emptying caches: with an eighth of a processor INT8 took
# 0.82 to 1.1 times the share of fp32's that it takes on an idle one (docs/decisions/0020).
DOUBT = 1.25

_Z95 = 1.6449
_Z_BOTH = 1.96  # both ends of 95 %
_Z_PLANNED = 1.70 + 0.84  # the exact bound at few counts, and 80 % of the draws
_NUISANCE_ERROR = 0.001
_NUISANCE_STEPS = 16
_PRECISION = 1e-5  # of a bound: a thousandth of a point
_FAR = 6.5  # standard deviations; what lies beyond counts against the model


class Interval(msgspec.Struct, frozen=True):
    """A value and the ends of its two-sided interval, of 95 % where nothing else is said."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Drop:
    """Points of a metric in percent that a model loses against its reference.

    Attributes:
        points: on these samples; negative is a gain.
        at_most: upper end of the one-sided 95 % interval.
        error: standard deviation of ``points``, were the samples drawn anew.
    """

    samples: int
    points: float
    at_most: float
    error: float


@dataclass(frozen=True)
class Verdict:
    """Whether a drop stays within a budget.

    Attributes:
        holds: shown. If not, either the samples are too few, or the drop itself is past the budget.
        needs_more: as many more samples that behave like these would show it; null if none would, or none are needed.
    """

    holds: bool
    needs_more: int | None


# --- answers that are right or wrong -------------------------------------------------------------------------------


def paired_drop(lost: int, won: int, samples: int) -> Drop:
    """The drop of top-1 accuracy.

    Args:
        lost: samples that the reference has right and the model has wrong.
        won: samples that it is the other way round.
    """
    if samples < 1 or min(lost, won) < 0 or lost + won > samples:
        raise ValueError(f"{lost} lost and {won} won of {samples} samples")
    difference, discordant = (lost - won) / samples, (lost + won) / samples
    error = math.sqrt(max(0.0, discordant - difference**2) / samples)
    return Drop(samples, 100 * difference, 100 * _exact_bound(lost, won, samples, ERROR), 100 * error)


def paired_interval(lost: int, won: int, samples: int) -> Interval:
    """Points of top-1 accuracy that a model gains: two exact bounds."""
    low, high = (100 * _exact_bound(*counts, samples, ERROR / 2) for counts in ((lost, won), (won, lost)))
    return Interval(-low, 100 * (won - lost) / samples, high)


def paired_needs(lost: int, won: int, samples: int) -> int | None:
    """As many more samples that behave like these would tell the two apart; None: none would, or none are needed."""
    more, fewer = max(lost, won), min(lost, won)
    edge = _exact_bound(fewer, more, samples, ERROR / 2)
    if more == fewer or edge < 0:
        return None
    z = max(_Z_BOTH, -float(_score(fewer, more, samples, edge)))  # of the exact bound, at these counts
    return max(1, math.ceil(samples * (more + fewer) * (z / (more - fewer)) ** 2) - samples)


def share_interval(count: int, samples: int) -> Interval:
    """A share in percent, with its exact interval."""
    low, high = _clopper_pearson(count, samples, ERROR, _log_factorials(samples))
    return Interval(100 * low, 100 * count / samples, 100 * high)


def judge_drop(drop: Drop, lost: int, won: int, budget: float) -> Verdict:
    """Holds a drop of top-1 accuracy to a budget in points."""
    if drop.at_most <= budget:
        return Verdict(holds=True, needs_more=None)
    if drop.points >= budget:
        return Verdict(holds=False, needs_more=None)

    z = max(_Z95, -float(_score(lost, won, drop.samples, drop.at_most / 100)))  # of the exact bound, at these counts

    def shows(samples: int) -> bool:
        share = samples / drop.samples
        return 100 * _score_bound(lost * share, won * share, samples, z) <= budget

    return Verdict(holds=False, needs_more=_first(shows, drop.samples) - drop.samples)


def planned_drop(lost: int, won: int, samples: int, planned: int) -> float:
    """The bound, in points, that ``planned`` fresh samples will stay below with 80 % chance, if they are like these."""
    share = planned / samples
    return 100 * _score_bound(lost * share, won * share, planned, _Z_PLANNED)


def to_plan(points: float, samples: int) -> int:
    """How many more than ``samples`` it takes to plan for ``points``, if both models answer all of them alike."""

    def enough(count: int) -> bool:
        return planned_drop(0, 0, count, count) <= points

    return 0 if enough(samples) else _first(enough, samples) - samples


def _first(shows: Callable[[int], bool], below: int) -> int:
    """The smallest number above ``below`` that shows it, for something that stays shown."""
    high = 2 * below
    while not shows(high):
        high *= 2
    return _bisect_int(shows, below, high)


def _bisect_int(true_at: Callable[[int], bool], low: int, high: int) -> int:
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if true_at(middle) else (middle, high)
    return high


def _score(lost: Counts, won: Counts, samples: int, drop: float) -> Floats:
    """Tango's statistic of the hypothesis that the drop is ``drop``, a fraction; low if less was seen."""
    lost, won = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    b = 2 * samples * drop - lost - won - (lost - won) * drop
    c = -won * drop * (1 - drop)
    gain = (np.sqrt(np.maximum(b * b - 8 * samples * c, 0.0)) - b) / (4 * samples)
    variance = samples * np.maximum(2 * gain + drop - drop * drop, 1e-12)
    return np.asarray((lost - won - samples * drop) / np.sqrt(variance))


def _score_bound(lost: float, won: float, samples: int, z: float) -> float:
    """The drop, as a fraction, at which the score statistic is ``-z``."""
    low, high = (lost - won) / samples, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if _score(lost, won, samples, middle) > -z else (low, middle)
    return high


def _log_factorials(most: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def _exact_bound(lost: int, won: int, samples: int, error: float) -> float:
    """The largest drop, as a fraction, that these counts do not refute with a chance of ``error`` to be wrong."""
    factorials = _log_factorials(samples)
    discordant = _clopper_pearson(lost + won, samples, _NUISANCE_ERROR, factorials)
    low, high = (lost - won) / samples, 1.0
    near = min(1.0, 1.5 * _score_bound(lost, won, samples, 2.0) + 2 / samples)
    if near > low and _chance(near, lost, won, samples, discordant, factorials) <= error:
        high = near
    while high - low > _PRECISION:
        middle = (low + high) / 2
        refuted = _chance(middle, lost, won, samples, discordant, factorials) <= error
        low, high = (low, middle) if refuted else (middle, high)
    return high


def _chance(
    drop: float, lost: int, won: int, samples: int, discordant: tuple[float, float], factorials: Floats
) -> float:
    """The largest chance to see so little, if the drop is ``drop``, over how often the two may disagree."""
    low, high = max(discordant[0], abs(drop)), min(discordant[1], 1.0)
    if low > high:  # as many disagreements as such a drop needs were all but impossible
        return _NUISANCE_ERROR
    rates = np.linspace(low, high, _NUISANCE_STEPS)
    losses, gains = (rates + drop) / 2, np.maximum((rates - drop) / 2, 0.0)
    x, y = np.meshgrid(_window(losses, samples), _window(gains, samples), indexing="ij")
    there = x + y <= samples
    x, y = x[there], y[there]
    extreme = _score(x, y, samples, drop) <= float(_score(lost, won, samples, drop)) + 1e-9
    neither = samples - x - y
    ways = factorials[samples] - factorials[x] - factorials[y] - factorials[neither]
    most = 0.0
    for loss, gain, rate in zip(losses, gains, rates, strict=True):
        log = ways + x * _log(loss) + y * _log(gain) + neither * _log(1 - rate)
        chances = np.exp(log)
        most = max(most, float(chances[extreme].sum()) + max(0.0, 1.0 - float(chances.sum())))
    return most + _NUISANCE_ERROR


def _window(rates: Floats, samples: int) -> NDArray[np.int64]:
    """The counts that any of ``rates`` makes at all likely."""
    spread = _FAR * np.sqrt(samples * rates.max()) + 10
    low, high = samples * rates.min() - spread, samples * rates.max() + spread
    return np.arange(max(0, math.floor(low)), min(samples, math.ceil(high)) + 1)


def _log(rate: float) -> float:
    return math.log(max(rate, 1e-300))  # times zero is zero, times one is as good as never


def _clopper_pearson(count: int, samples: int, error: float, factorials: Floats) -> tuple[float, float]:
    """The exact two-sided interval of a rate (Clopper and Pearson, Biometrika 26:404, 1934)."""
    counts = np.arange(samples + 1)
    ways = factorials[samples] - factorials - factorials[::-1]

    def tail(rate: float, part: slice) -> float:
        log = ways + counts * _log(rate) + (samples - counts) * _log(1 - rate)
        return float(np.exp(log[part]).sum())

    high = _bisect(lambda rate: tail(rate, slice(0, count + 1)) <= error / 2)
    low = 1 - _bisect(lambda rest: tail(1 - rest, slice(count, None)) <= error / 2)
    return (low if count else 0.0), (high if count < samples else 1.0)


def _bisect(true_at: Callable[[float], bool]) -> float:
    """Where a statement about a number in 0..1 becomes true, from above."""
    low, high = 0.0, 1.0
    while high - low > _PRECISION / 10:
        middle = (low + high) / 2
        low, high = (low, middle) if true_at(middle) else (middle, high)
    return high


# --- time ----------------------------------------------------------------------------------------------------------


def doubt(had_processor: float) -> float:
    """The factor by which a ratio may be wrong either way besides its interval."""
    return 1.0 if had_processor >= BUSY else DOUBT


def nearly(at_most_ms: float, limit_ms: float | None, had_processor: float) -> bool:
    """Whether a time is past its limit by no more than a busy machine may have added."""
    return limit_ms is not None and limit_ms < at_most_ms <= limit_ms * doubt(had_processor)


@dataclass(frozen=True)
class Ratio:
    """One model's time over another's, both timed in turn.

    Attributes:
        had_processor: of a processor, what there was meanwhile.
    """

    median: float
    at_most: float
    at_least: float = 0.0
    had_processor: float = 1.0

    @property
    def faster(self) -> bool:
        """The rule that no variant ships without: beyond doubt faster than what it stands beside."""
        return self.at_most * doubt(self.had_processor) < SLOWER

    @property
    def undecided(self) -> bool:
        """The machine was too busy for a verdict. An idle one always has one: not beyond doubt faster."""
        slower = self.at_least >= SLOWER * doubt(self.had_processor)
        return self.had_processor < BUSY and not self.faster and not slower

    @property
    def busy(self) -> str:
        """What is to be said and done where it is `undecided`."""
        return too_busy(f"{self.at_least:.2f} to {self.at_most:.2f} of the time", self.had_processor)


def too_busy(found: str, had_processor: float) -> str:
    """Why ``found`` decides nothing, and what to do."""
    return (
        f"the machine is too busy to time on: {had_processor:.0%} of a processor, where {found} decides nothing; run "
        "again when it is quiet, --resume goes on here"
    )


def time_ratio(times: Sequence[float], base: Sequence[float], had_processor: float = 1.0) -> Ratio:
    """The ratio of two series that were timed in turn.

    Raises:
        ValueError: fewer rounds than `MIN_BLOCKS`.
    """
    if len(times) != len(base) or len(times) < MIN_BLOCKS:
        raise ValueError(f"{len(times)} and {len(base)} rounds; expected as many of each, {MIN_BLOCKS} at least")
    found = median_interval([a / b for a, b in zip(times, base, strict=True)], ERROR)
    return Ratio(found.value, found.high, found.low, had_processor)


def median_at_most(values: Sequence[float]) -> float:
    """Upper end of the one-sided 95 % interval of the median of a timed series."""
    return median_interval(values, ERROR).high


def median_interval(values: Sequence[float], side: float = ERROR / 2) -> Interval:
    """The median of a timed series; the chance that the true one lies beyond is at most ``side`` for either end.

    Whatever the distribution, a value lies below its median with probability one half, so the ends are order
    statistics with the binomial distribution's ranks. Fewer than six values cannot hold it with 95 %: the ends are
    then the extremes.
    """
    parts = np.array_split(np.array(values, np.float64), min(len(values), max(MIN_BLOCKS, len(values) // 16)))
    blocks = sorted(float(np.median(part)) for part in parts)
    rank = _rank(len(blocks), side)
    return Interval(blocks[rank], float(np.median(blocks)), blocks[-1 - rank])


def _rank(count: int, side: float) -> int:
    """The last place from the edge, from 0, that lies beyond the median with a chance of at most ``side``."""
    chance, rank = 0.0, -1
    while rank + 1 < count // 2 and (chance := chance + math.comb(count, rank + 1) / 2**count) <= side:
        rank += 1
    return max(rank, 0)
