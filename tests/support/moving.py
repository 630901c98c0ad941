"""Things that move, and the stamps of the frames that show them."""

from __future__ import annotations

from edge_agent.rules.scene import Stamp, Thing
from skerry.clock import Trust


def thing(x: float, y: float, track: int = 1, label: str = "person", best: float = 0.9, size: float = 0.1) -> Thing:
    """Something whose foot stands at (x, y)."""
    return Thing(track, label, best, (x - size / 2, y - size, x + size / 2, y))


def stamp(time_s: float = 0.0, frame: int = 0) -> Stamp:
    return Stamp(source="gate", frame=frame, release="r", utc_ms=0, trust=Trust.NONE, mono_ms=round(time_s * 1000))
