"""What paired measurements say of two things: a difference of hits, with its interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compiler.statistics import Interval

_Z = 1.959963984540054  # 97.5 % point of the normal distribution


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
