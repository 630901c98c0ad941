"""Inline SVG, element by element, as text: what a page shows without a script, a font or a link.

Colours are classes of the page's style sheet, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Axis:
    """Maps numbers from ``low`` to ``high`` onto pixels from ``start`` to ``end``; beyond them it stays at the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers inside."""
        step = _round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if rough <= power * m * (1 + 1e-9))


def span(values: Sequence[float], margin: float = 0.08) -> tuple[float, float]:
    """The least and the greatest, with some air; never empty."""
    low, high = min(values), max(values)
    air = (high - low) * margin or max(abs(high), 1.0) * margin
    return low - air, high + air


def number(value: float) -> str:
    """A tick's label."""
    return f"{round(value, 6):g}"


def svg(width: float, height: float, says: str, parts: Iterable[str]) -> str:
    """A drawing; ``says`` is read aloud in its place."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(says)}">{"".join(parts)}</svg>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    """A straight line of the class ``kind``."""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words whose ``anchor`` lies at x, on the line y."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, says: str = "") -> str:
    """A rectangle; what it ``says`` shows where a pointer rests."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{kind}">'
        f"{_title(says)}</rect>"
    )


def circle(x: float, y: float, radius: float, kind: str, says: str = "") -> str:
    """A disc around (x, y)."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}">{_title(says)}</circle>'


def path(points: Iterable[tuple[float, float]], kind: str, says: str = "", *, closed: bool = False) -> str:
    """Straight strokes from point to point."""
    steps = " ".join(f"{'L' if k else 'M'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate(points))
    return f'<path d="{steps}{" Z" if closed else ""}" class="{kind}">{_title(says)}</path>'


def diamond(x: float, y: float, radius: float, kind: str, says: str = "") -> str:
    """A square on its corner."""
    corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
    return path(corners, kind, says, closed=True)


def _title(says: str) -> str:
    return f"<title>{escape(says)}</title>" if says else ""
