"""The privacy gate: the one place that every picture passes on its way out, whatever the way is.

What was not allowed does not leave. What is allowed leaves with its masks black and the wanted things made coarse; a
picture that shows what must not be shown does not leave at all. The gate works on a copy, in the frame's own size.

What the model does not find cannot be blurred: masks hold always, blur and drop as well as the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import Mask, PrivacyConfig
from edge_agent.mailbox import Captured
from skerry.errors import ConfigError
from skerry.execution.processing import Frame
from skerry.wire import Answer

LIVE_VIEW, SNAPSHOT, EVENT_PICTURE, SAMPLE = SINKS = ("live-view", "snapshot", "event-picture", "sample")
Points = NDArray[np.float64]
_MARGIN = 0.1  # of a box's sides: boxes are drawn tight, and faces have hair
_CELLS = 4  # along a box's longer side: too few to know anybody by


class Gate:
    """Decides what may leave, and how. Belongs to one thread at a time for each source.

    Raises:
        ConfigError: a sink that there is not, or a mask that is no area.
    """

    def __init__(self, policy: PrivacyConfig) -> None:
        for sink in policy.allow:
            if sink not in SINKS:
                raise ConfigError(f'privacy.allow: "{sink}" is no way out of here; there are {", ".join(SINKS)}')
        for mask in policy.masks:
            _check(mask)
        self._policy = policy
        self._areas: dict[tuple[str, int, int], NDArray[np.bool_]] = {}

    def allows(self, sink: str) -> bool:
        """Whether anything leaves by that way."""
        return sink in self._policy.allow

    def open(self, sink: str, frame: Captured, answers: Sequence[Answer] | None) -> Frame | None:
        """The pixels that may leave by ``sink``; None if none may.

        Args:
            answers: all that the model found, however unsure; None if it has not looked: then a policy that depends
                on what is seen lets nothing out.

        Returns:
            RGB uint8 [H, W, 3], a copy.
        """
        policy = self._policy
        if sink not in policy.allow or (answers is None and (policy.blur or policy.drop)):
            return None
        found = answers or ()
        if any(answer.label in policy.drop for answer in found):
            return None
        pixels = np.array(frame.pixels())
        for answer in found:
            if answer.label in policy.blur:
                coarsen(pixels, answer.box)
        pixels[self._area(frame.source, pixels.shape[0], pixels.shape[1])] = 0
        return pixels

    def _area(self, source: str, height: int, width: int) -> NDArray[np.bool_]:
        """The pixels that the masks of a source cover, [H, W]."""
        key = (source, height, width)
        if key not in self._areas:
            area = np.zeros((height, width), np.bool_)
            for mask in self._policy.masks:
                if mask.source in (source, "*"):
                    area |= covered(mask.polygon, height, width)
            self._areas[key] = area
        return self._areas[key]


def _check(mask: Mask) -> None:
    if len(mask.polygon) < 3:
        raise ConfigError(f"privacy.masks: {len(mask.polygon)} points for {mask.source}; an area has at least 3")


def covered(polygon: Sequence[tuple[float, float]], height: int, width: int) -> NDArray[np.bool_]:
    """Every pixel that a polygon touches: those that its sides cross, and those whose middle it goes around.

    Args:
        polygon: corners (x, y) as fractions of width and height; its sides may cross each other.
    """
    corners = np.array(polygon) * (width, height)
    ends = np.roll(corners, -1, axis=0)
    return _around(corners, ends, height, width) | _crossed(corners, ends, height, width)


def _around(corners: Points, ends: Points, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels whose middle has a winding number other than 0 (Sunday, "Inclusion of a Point in a Polygon", 2001)."""
    y, x = np.mgrid[0.5:height, 0.5:width]
    winding = np.zeros((height, width), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, ends, strict=True):
        left_of = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        winding += ((y0 <= y) & (y1 > y) & (left_of > 0)).astype(np.int32)
        winding -= ((y0 > y) & (y1 <= y) & (left_of < 0)).astype(np.int32)
    return np.not_equal(winding, 0)


def _crossed(corners: Points, ends: Points, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels that the sides run through."""
    area = np.zeros((height, width), np.bool_)
    for start, end in zip(corners, ends, strict=True):
        steps = int(np.abs(end - start).max() * 4) + 2  # a quarter of a pixel apart
        points = start + (end - start) * np.linspace(0, 1, steps)[:, None]
        columns, rows = np.clip(points.astype(int), 0, (width - 1, height - 1)).T
        area[rows, columns] = True
    return area


def coarsen(pixels: Frame, box: tuple[float, float, float, float] | None) -> None:
    """Makes a box a few flat cells, in place; no box is the whole picture."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = box or (0.0, 0.0, 1.0, 1.0)
    grow_x, grow_y = (x1 - x0) * _MARGIN, (y1 - y0) * _MARGIN
    left, right = _range(x0 - grow_x, x1 + grow_x, width)
    top, bottom = _range(y0 - grow_y, y1 + grow_y, height)
    cell = max(1, math.ceil(max(right - left, bottom - top) / _CELLS))
    for y in range(top, bottom, cell):
        for x in range(left, right, cell):
            part = pixels[y : min(y + cell, bottom), x : min(x + cell, right)]
            part[:] = part.reshape(-1, 3).mean(axis=0)


def _range(low: float, high: float, size: int) -> tuple[int, int]:
    """Whole pixels that hold an interval of fractions."""
    return max(0, math.floor(low * size)), min(size, math.ceil(high * size))
