"""Pauses between attempts that a fleet makes at once."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Pauses between attempts: doubling, each cut to between half and all of it, so that a fleet does not come at once.

    Args:
        uniform: a random number between two, as `random.Random.uniform`.
    """

    def __init__(self, first_s: float, longest_s: float, uniform: Callable[[float, float], float]) -> None:
        self._first_s, self._longest_s, self._uniform = first_s, longest_s, uniform
        self._next_s = first_s

    def pause_s(self) -> float:
        """The next pause."""
        pause, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return self._uniform(pause / 2, pause)

    def worked(self) -> None:
        """The attempt succeeded: the next failure starts over."""
        self._next_s = self._first_s
