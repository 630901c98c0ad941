"""Resizing in numpy: the same on every device but for float rounding, which no library promises across CPUs.

A resize is two small banded matrices, one per axis. They are cut into blocks, each a dense product over the few source
rows or columns that it needs: BLAS speed without multiplying zeros (1080p to 224 with antialiasing: 3 ms on one core;
benchmarks/preprocess.py prints it beside Pillow and OpenCV).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_BLOCK = 16  # target pixels per block: small enough to skip zeros, large enough for BLAS


@dataclass(frozen=True)
class _Block:
    out: slice
    source: slice
    weights: Float  # [targets, sources]


def taps(source: int, target: int, interpolation: str, antialias: bool) -> Float:  # noqa: FBT001 - a recipe's value
    """The matrix [target, source] that resizes one axis.

    Pixel centres lie at i + 0.5. "nearest" takes the source pixel under the target's centre. "bilinear" is a triangle
    of half-width 1 source pixel, or, with antialias when shrinking, of half-width source/target (Pillow's and
    torchvision's BILINEAR; without antialias, OpenCV's INTER_LINEAR). Each row sums to 1.
    """
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    if interpolation == "nearest":
        nearest = np.minimum(centres.astype(np.int64), source - 1)
        return np.asarray(np.eye(source, dtype=np.float32)[nearest])
    support = max(scale, 1.0) if antialias else 1.0
    distance = np.abs(centres[:, None] - (np.arange(source) + 0.5)[None, :]) / support
    weights = np.clip(1.0 - distance, 0.0, None)
    if not antialias:  # past the border the border pixel counts for both
        weights[:, 0] += np.clip(0.5 - centres, 0.0, None)
        weights[:, -1] += np.clip(centres - (source - 0.5), 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _blocks(matrix: Float) -> list[_Block]:
    blocks = []
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append(_Block(slice(start, start + len(rows)), source, np.ascontiguousarray(rows[:, source])))
    return blocks


class Resizer:
    """Resizes frames of one size: the whole frame to ``scaled``, of which only ``window`` is computed.

    Args:
        source: height and width of the frames.
        scaled: height and width that the whole frame would get.
        window: top, left, height and width of the part of ``scaled`` that is wanted.
    """

    def __init__(
        self,
        source: tuple[int, int],
        scaled: tuple[int, int],
        window: tuple[int, int, int, int],
        interpolation: str,
        antialias: bool,  # noqa: FBT001 - a recipe's value
    ) -> None:
        top, left, height, width = window
        rows = taps(source[0], scaled[0], interpolation, antialias)[top : top + height]
        columns = taps(source[1], scaled[1], interpolation, antialias)[left : left + width]
        used_rows, used_columns = np.flatnonzero(rows.any(axis=0)), np.flatnonzero(columns.any(axis=0))
        self._rows = slice(int(used_rows[0]), int(used_rows[-1]) + 1)
        self._columns = slice(int(used_columns[0]), int(used_columns[-1]) + 1)
        self._vertical = _blocks(rows[:, self._rows])
        self._horizontal = _blocks(columns[:, self._columns])
        self._cropped = np.empty((len(used_rows), len(used_columns) * 3), np.float32)
        self._tall = np.empty((height, len(used_columns) * 3), np.float32)
        self._out = np.empty((3, height, width), np.float32)

    def __call__(self, frame: NDArray[np.uint8]) -> Float:
        """RGB uint8 [H, W, 3] to float [3, height, width] in 0..255. The result is valid until the next call."""
        self._cropped.reshape(len(self._cropped), -1, 3)[:] = frame[self._rows, self._columns]
        for block in self._vertical:
            np.matmul(block.weights, self._cropped[block.source], out=self._tall[block.out])
        height = len(self._tall)
        planes = np.ascontiguousarray(self._tall.reshape(height, -1, 3).transpose(2, 0, 1)).reshape(3 * height, -1)
        flat = self._out.reshape(3 * height, -1)
        for block in self._horizontal:
            flat[:, block.out] = planes[:, block.source] @ block.weights.T
        return self._out
