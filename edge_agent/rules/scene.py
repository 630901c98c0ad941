"""What rules look at: things with a place, and the points and lines of the plane that they are on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from edge_agent.config import Anchor, LineConfig, ZoneConfig
from skerry.clock import Trust

Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """What a frame shows of a track.

    Attributes:
        track: its number.
        label: what it is, by the votes of its last sights.
        best: the highest score that it was ever seen with.
        corners: (x0, y0, x1, y1), as fractions of the frame.
    """

    track: int
    label: str
    best: float
    corners: tuple[float, float, float, float]

    def anchor(self, kind: Anchor) -> Point:
        """The point that stands for it."""
        x0, y0, x1, y1 = self.corners
        return (x0 + x1) / 2, y1 if kind == "foot" else (y0 + y1) / 2

    def wanted(self, rule: ZoneConfig | LineConfig) -> bool:
        """Whether a rule counts such things."""
        return self.best >= rule.min_score and (not rule.labels or self.label in rule.labels)


class Stamp(TypedDict):
    """Which frame an event is from."""

    source: str
    frame: int
    release: str
    utc_ms: int
    trust: Trust
    mono_ms: int


def within(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a point lies in a polygon: a ray from it crosses the sides an odd number of times."""
    x, y = point
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def beyond(point: Point, begin: Point, end: Point) -> float:
    """How far a point is in front of a line, in units of the line's length and the plane's: negative behind it."""
    return (end[1] - begin[1]) * (point[0] - begin[0]) - (end[0] - begin[0]) * (point[1] - begin[1])


def passes(before: Point, after: Point, begin: Point, end: Point) -> int:
    """1 if the way between two points goes forward through the line between its ends, -1 if backward, else 0.

    A point on the line counts as in front of it, so that the steps of a way add up to the passages of the whole.
    """
    was, now = beyond(before, begin, end), beyond(after, begin, end)
    if (was >= 0.0) == (now >= 0.0):
        return 0
    share = was / (was - now)
    at = before[0] + share * (after[0] - before[0]), before[1] + share * (after[1] - before[1])
    length = (end[0] - begin[0]) ** 2 + (end[1] - begin[1]) ** 2
    along = (at[0] - begin[0]) * (end[0] - begin[0]) + (at[1] - begin[1]) * (end[1] - begin[1])
    if not 0.0 <= along <= length:
        return 0
    return 1 if now >= 0.0 else -1
