"""A line: what crosses it, which way, and how many have. A thing that wavers on it crosses it once or never."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from edge_agent.config import LineConfig
from edge_agent.rules.scene import Point, Stamp, Thing, beyond, passes
from skerry.wire import Crossed, Judged

_CLEAR = 0.25  # of half a box: how far its point must be off the line to be on a side


@dataclass
class _Way:
    """Of one thing.

    Attributes:
        point: where it was seen last.
        side: the last side that it was clearly on, 1 in front; None as long as it was on none.
        passages: through the line since then, forward ones less backward ones.
        over_s: since when it is clearly on the other side; None if it is not.
    """

    point: Point
    side: int | None = None
    passages: int = 0
    over_s: float | None = None


class Line:
    """One line on one source."""

    def __init__(self, config: LineConfig) -> None:
        self.config = config
        self.forward = self.backward = 0
        self._ways: dict[int, _Way] = {}

    def update(self, time_s: float, things: Sequence[Thing], alive: Collection[int], stamp: Stamp) -> Iterator[Judged]:
        """What a frame changes, in the order of the tracks.

        Args:
            things: those that the frame shows.
            alive: tracks that are there, in sight or not.
        """
        for track in self._ways.keys() - set(alive):
            del self._ways[track]
        for thing in sorted(things, key=lambda thing: thing.track):
            if self._crosses(time_s, thing) and thing.wanted(self.config):
                yield self._count(thing, stamp)

    def close(self, stamp: Stamp) -> Iterator[Judged]:
        """A line that ends has nothing left to tell."""
        del stamp
        yield from ()

    def _crosses(self, time_s: float, thing: Thing) -> bool:
        """Whether this frame makes it certain that the thing has crossed."""
        begin, end = self.config.begin, self.config.end
        point = thing.anchor(self.config.anchor)
        way = self._ways.setdefault(thing.track, _Way(point))
        way.passages += passes(way.point, point, begin, end)
        way.point = point
        side = _side(thing, point, begin, end)
        if side == 0:
            return False
        if way.side in (None, side):
            way.side, way.passages, way.over_s = side, 0, None
            return False
        way.over_s = time_s if way.over_s is None else way.over_s
        if time_s - way.over_s < self.config.settle_s:
            return False
        crossed = way.passages != 0  # 0: it went around an end
        way.side, way.passages, way.over_s = side, 0, None
        return crossed

    def _count(self, thing: Thing, stamp: Stamp) -> Crossed:
        forward = self._ways[thing.track].side == 1
        self.forward, self.backward = self.forward + forward, self.backward + (not forward)
        return Crossed(
            line=self.config.name,
            track=thing.track,
            label=thing.label,
            direction="forward" if forward else "backward",
            forward=self.forward,
            backward=self.backward,
            **stamp,
        )


def _side(thing: Thing, point: Point, begin: Point, end: Point) -> int:
    """1 in front of the line, -1 behind it, 0 too near to tell: a detector's boxes tremble with their size."""
    x0, y0, x1, y1 = thing.corners
    reach = (abs(end[1] - begin[1]) * (x1 - x0) + abs(end[0] - begin[0]) * (y1 - y0)) / 2
    far = beyond(point, begin, end)
    if abs(far) < max(_CLEAR * reach, 1e-12):
        return 0
    return 1 if far > 0 else -1
