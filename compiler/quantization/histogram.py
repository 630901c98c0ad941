"""A histogram of all values ever seen, without knowing their range beforehand and without a second pass.

Bins are ``width`` wide, 0 is an edge, and ``width`` is a power of two. When a value falls outside, the width doubles
and bins merge in pairs: no count is lost or split, so the histogram is the one that knowing the range would have
given, in whatever order the values came. (A value so much smaller than the width that float32 cannot say their quotient
counts as 0.)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

HALF = 4096  # bins on each side of 0; between HALF / 2 and HALF of them are in use
_PIECE = 1 << 15  # values binned at a time: they stay in the processor's cache


class Histogram:
    """Counts by bin. ``low`` and ``high`` are the exact extremes, 0 included."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF, np.int64)
        self.width = 0.0  # nothing but zeros so far
        self.low = self.high = 0.0

    def add(self, value: NDArray[np.float32]) -> None:
        """Counts every element.

        Raises:
            ValueError: one is not finite.
        """
        flat = value.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if not self.width:
            self.counts[HALF] += flat.size
            return
        for start in range(0, flat.size, _PIECE):
            self._count(flat[start : start + _PIECE])

    def edges(self) -> NDArray[np.float64]:
        """The bins' borders, one more than there are bins."""
        return np.asarray(np.arange(-HALF, HALF + 1) * self.width, np.float64)

    def centres(self) -> NDArray[np.float64]:
        """The bins' middles; of the bin of 0, which holds the zeros of a ReLU, its edge."""
        centres = np.asarray((np.arange(-HALF, HALF) + 0.5) * self.width, np.float64)
        centres[HALF] = 0.0
        return centres

    def _count(self, piece: NDArray[np.float32]) -> None:
        scaled = piece * np.float32(1.0 / self.width)  # exact: a power of two
        np.floor(scaled, out=scaled)
        bins = scaled.astype(np.int64)
        bins += HALF
        self.counts += np.bincount(bins, minlength=2 * HALF)

    def _reach(self, magnitude: float) -> None:
        """Widens the bins until ``magnitude`` falls into one."""
        if magnitude == 0.0:
            return
        wanted = 2.0 ** math.ceil(math.log2(magnitude / HALF))
        wanted = max(wanted, 2.0**-120)  # its inverse is a float32
        while wanted * HALF <= magnitude:  # the logarithm rounds; the last edge is outside
            wanted *= 2.0
        if not self.width:
            self.width = wanted
        while self.width < wanted:
            self.width *= 2.0
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[HALF // 2 : HALF // 2 + HALF] = merged
