"""What paired measurements say of two things: a ratio of times, a difference of hits, each with its interval. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

_Z = 1.959963984540054  # 97.5 % point of the normal distribution


class Interval(msgspec.Struct, frozen=True):
    """A value and the ends of its two-sided 95 % interval."""

    low: float
    value: float
    high: float


def median_interval(values: Sequence[float]) -> Interval:
    """The median, between the order statistics that hold the true one with 95 %, whatever the distribution.

    Each value lies below the median with probability one half, so the ends follow from the binomial distribution
    (David and Nagaraja, "Order Statistics", 3rd ed., 7.1). Fewer than six values hold nothing: the ends are then the
    extremes.
    """
    ordered, count = sorted(values), len(values)
    below, share = -1, 0.0
    while below + 1 < count // 2 and (share := share + math.comb(count, below + 1) / 2**count) <= 0.025:
        below += 1
    first = max(below, 0)
    return Interval(ordered[first], statistics.median(ordered), ordered[count - 1 - first])


def difference_interval(hits_a: Sequence[bool], hits_b: Sequence[bool]) -> Interval:
    """Share of hits of b less that of a on the same samples, in points.

    Wald's interval over the discordant pairs with one added to each count (Bonett and Price, "Adjusted Wald Confidence
    Interval for a Difference of Binomial Proportions Based on Paired Data", JEBS 37, 2012): sound for few samples too.
    """
    count = len(hits_a)
    gained = sum(b and not a for a, b in zip(hits_a, hits_b, strict=True))
    lost = sum(a and not b for a, b in zip(hits_a, hits_b, strict=True))
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    middle, half = up - down, _Z * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Interval(100 * (middle - half), 100 * (gained - lost) / count, 100 * (middle + half))
