"""Resizing in numpy, pixel for pixel what the libraries do that nets are trained with.

Rounding is a part of it. Pillow rounds to 8 bits after each axis, columns first, and a net that was trained behind it
can tell: on smooth frames, MobileNetV2's outputs are off by 18 dB when the same resize is left unrounded.

A resize is two small banded matrices, one per axis. They are cut into blocks, each a dense product over the few source
rows or columns that it needs: BLAS speed without multiplying zeros. benchmarks/preprocess.py prints the time beside
Pillow's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

# What is added before cutting off to whole numbers. Many sums are halves on paper and a hair less in floats, by the
# order in which a BLAS adds; the excess, above that noise and below what tells two greys apart, lifts them all. Without
# it a thousandth of the values of a frame differ between two BLAS libraries, with it hardly any; Pillow is as near.
HALF = np.float32(0.5 + 2.0**-13)

_BLOCK = 16  # target pixels per block: small enough to skip zeros, large enough for BLAS


@dataclass(frozen=True)
class Block:
    """A dense piece of a banded matrix: which targets, from which sources, by which weights [targets, sources]."""

    out: slice
    source: slice
    weights: Float


def taps(
    source: int,
    target: int,
    interpolation: str,
    antialias: bool,  # noqa: FBT001 - a recipe's value
    rows: slice = slice(None),
) -> Float:
    """The matrix [target, source] that resizes one axis, or some of its ``rows``; each sums to 1.

    Pixel centres lie at i + 0.5. "nearest" takes the source pixel under the target's centre. "bilinear" is a triangle
    of half-width 1 source pixel (OpenCV's INTER_LINEAR), or, with antialias when shrinking, of half-width source/target
    (BILINEAR of Pillow, and of torchvision on Pillow's images).
    """
    scale = source / target
    centres = (np.arange(target)[rows] + 0.5) * scale
    if interpolation == "nearest":
        nearest = np.minimum(centres.astype(np.int64), source - 1)
        return np.asarray(nearest[:, None] == np.arange(source), np.float32)
    support = max(scale, 1.0) if antialias else 1.0
    distance = np.abs(centres[:, None] - (np.arange(source) + 0.5)[None, :]) / support
    weights = np.clip(1.0 - distance, 0.0, None)
    if not antialias:  # past the border the border pixel counts for both
        weights[:, 0] += np.clip(0.5 - centres, 0.0, None)
        weights[:, -1] += np.clip(centres - (source - 0.5), 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def blocks(matrix: Float) -> list[Block]:
    """The matrix [target, source] as dense pieces, without the zeros around the band."""
    found = []
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        found.append(Block(slice(start, start + len(rows)), source, np.ascontiguousarray(rows[:, source])))
    return found


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
        rows = taps(source[0], scaled[0], interpolation, antialias, slice(top, top + height))
        columns = taps(source[1], scaled[1], interpolation, antialias, slice(left, left + width))
        used_rows, used_columns = np.flatnonzero(rows.any(axis=0)), np.flatnonzero(columns.any(axis=0))
        self._rows = slice(int(used_rows[0]), int(used_rows[-1]) + 1)
        self._columns = slice(int(used_columns[0]), int(used_columns[-1]) + 1)
        self._vertical = blocks(rows[:, self._rows])
        self._horizontal = blocks(columns[:, self._columns])
        tall, wide = self._rows.stop - self._rows.start, self._columns.stop - self._columns.start
        self._planes = np.empty((3, tall, wide), np.float32)
        self._narrow = np.empty((3, tall, width), np.float32)
        self._out = np.empty((3, height, width), np.float32)
        self._round_between = antialias and interpolation == "bilinear"  # as Pillow does; OpenCV rounds at the end only

    def __call__(self, frame: NDArray[np.uint8]) -> Float:
        """RGB uint8 [H, W, 3] to whole numbers 0..255 [3, height, width]. The result is valid until the next call."""
        np.copyto(self._planes, frame[self._rows, self._columns].transpose(2, 0, 1))
        planes = self._planes.reshape(-1, self._planes.shape[2])
        narrow = self._narrow.reshape(-1, self._narrow.shape[2])
        for block in self._horizontal:
            narrow[:, block.out] = planes[:, block.source] @ block.weights.T
        if self._round_between:
            _round(self._narrow)
        for block in self._vertical:
            np.matmul(block.weights, self._narrow[:, block.source], out=self._out[:, block.out])
        _round(self._out)
        return self._out


def _round(values: Float) -> None:
    """To whole numbers in place, halves up: as fixed-point arithmetic does."""
    np.add(values, HALF, out=values)
    np.floor(values, out=values)
