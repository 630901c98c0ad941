"""Notices a camera that gives one picture over and over. Pure.

A live sensor's noise makes every picture another, however still the scene is; the same bytes for a minute are a frozen
encoder, a paused recorder or a test card.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FROZEN_S = 45.0  # said by then; the picture repeats since
_EVERY = 16  # rows of a first look: of a picture that moves, no more is read
_FEWEST = 10  # pictures: two in a minute may be alike by chance of the codec


class Stillness:
    """Hears every picture of a source."""

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None
        self._since = 0.0
        self._repeats = 0

    def look(self, luma: NDArray[np.uint8], now: float) -> bool:
        """Whether the camera is frozen.

        Args:
            luma: brightness [H, W] as decoded; must stay as it is until the next call.
            now: seconds, monotonic.
        """
        if self._last is None or not _same(self._last, luma):
            self._since, self._repeats = now, 0
        else:
            self._repeats += 1
        self._last = luma
        return self._repeats >= _FEWEST and now - self._since >= FROZEN_S


def _same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Looks at a few rows first."""
    return a.shape == b.shape and np.array_equal(a[::_EVERY], b[::_EVERY]) and np.array_equal(a, b)
