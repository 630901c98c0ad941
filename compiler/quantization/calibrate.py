"""Ranges: from which value to which each grid of eight bits reaches, found on calibration frames.

One pass over the frames, one frame in memory, and per value a summary whose size does not depend on how many there
are. Which summary, and which range from it, is the method:

- *minmax*: the least and the largest value ever seen. Loses nothing and lets one outlier widen the grid for all.
- *percentile-frames*: minimum and maximum per frame, then the 2nd and 98th percentile over the frames. One frame's
  outlier counts as one frame; what every frame has, stays. The default.
- *percentile*: 99.99 % of all values lie inside (Wu et al., "Integer Quantization for Deep Learning Inference",
  arXiv:2004.09602, section 5).
- *mse*: the range with the least mean squared error of clipping and rounding together (Banner et al., "Post training
  4-bit quantization of convolutional networks", NeurIPS 2019, equation 4, on the histogram instead of a distribution).
- *entropy*: the range whose 128 levels keep most of the distribution, by Kullback-Leibler divergence (Migacz, "8-bit
  Inference with TensorRT", GTC 2017).

Every range holds 0: padding and ReLU need it exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.graph.onnxfile import Probe, float_values
from compiler.quantization.histogram import HALF, Histogram
from skerry.errors import CalibrationError

Tensor = NDArray[np.float32]
Range = tuple[float, float]
Method = Literal["percentile-frames", "minmax", "percentile", "mse", "entropy"]
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT: Method = "percentile-frames"

_LOW, _HIGH = 2.0, 98.0  # percentiles over the frames
_OUTSIDE = 1e-4  # share of all values that "percentile" leaves out, half of it on either side of 0 if both are used
_LEAST = 1e-6  # width of the range of a value that is always 0
_TRIES = 64  # ranges that "mse" compares
_LEVELS = 128  # Migacz: of a signed byte's positive half


class Observer(Protocol):
    """Sees one value in every frame, and says its range."""

    def add(self, value: Tensor) -> None: ...

    def range(self) -> Range: ...


def ranges(
    model: onnx.ModelProto,
    tensors: Iterable[Tensor],
    method: Method,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Range]:
    """The range of each float value over the calibration ``tensors``, by the value's name; the input's too.

    Raises:
        CalibrationError: no tensor came, or a value is not finite.
    """
    probe = Probe(model, float_values(model), threads=threads)
    constants = {t.name for t in model.graph.initializer}
    entry = next(v.name for v in model.graph.input if v.name not in constants)
    observers = {name: observer(method) for name in [entry, *probe.values]}
    count = 0
    for count, tensor in enumerate(tensors, 1):
        for name, value in [(entry, tensor), *probe(tensor)]:
            _see(observers[name], name, np.asarray(value, np.float32), count)
        progress(f"calibrating, frame {count}")
    if not count:
        raise CalibrationError("no calibration frame came: expected one at least; add photos or a video to --calib")
    return {name: observer.range() for name, observer in observers.items()}


def observer(method: Method) -> Observer:
    """One that has seen nothing yet."""
    return _OBSERVERS[method]()


def _see(observer: Observer, name: str, value: Tensor, frame: int) -> None:
    try:
        observer.add(value)
    except ValueError:
        raise CalibrationError(
            f"value {name} is not finite in calibration frame {frame}: the net overflows there in fp32 already; look "
            "at the frame, and at the net's weights"
        ) from None


def _held(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0, _LEAST)


def _extremes(value: Tensor) -> Range:
    if not value.size:
        return 0.0, 0.0
    low, high = float(value.min()), float(value.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("not finite")
    return low, high


class MinMax:
    """The least and the largest of all."""

    def __init__(self) -> None:
        self._low = self._high = 0.0

    def add(self, value: Tensor) -> None:
        low, high = _extremes(value)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> Range:
        return _held(self._low, self._high)


class PercentileOfFrames:
    """Percentiles of the frames' minima and maxima. Two numbers a frame are all that grows."""

    def __init__(self) -> None:
        self._pairs: list[Range] = []

    def add(self, value: Tensor) -> None:
        self._pairs.append(_extremes(value))

    def range(self) -> Range:
        pairs = np.array(self._pairs)
        return _held(float(np.percentile(pairs[:, 0], _LOW)), float(np.percentile(pairs[:, 1], _HIGH)))


class _OfHistogram:
    """What a method decides on the histogram of all values."""

    def __init__(self) -> None:
        self._seen = Histogram()

    def add(self, value: Tensor) -> None:
        self._seen.add(value)

    def range(self) -> Range:
        seen = self._seen
        low, high = self.decide(seen)
        return _held(max(low, seen.low), min(high, seen.high))  # a bin's edge may lie past the last value

    def decide(self, seen: Histogram) -> Range:
        raise NotImplementedError


class Percentile(_OfHistogram):
    """Leaves the same share of all values outside, half on each side; all of it on the one side if there is one."""

    def decide(self, seen: Histogram) -> Range:
        total, edges = seen.counts.sum(), seen.edges()
        outside = _OUTSIDE * total / (2.0 if seen.low < 0.0 < seen.high else 1.0)
        from_below = np.cumsum(seen.counts)
        from_above = np.cumsum(seen.counts[::-1])
        first = int(np.searchsorted(from_below, outside, side="right"))
        last = len(seen.counts) - int(np.searchsorted(from_above, outside, side="right"))
        return float(edges[min(first, HALF)]), float(edges[max(last, HALF)])


class LeastSquares(_OfHistogram):
    """Of ranges that are shrunk towards 0 in `_TRIES` steps, one side after the other, the one with the least error.

    Twice round: how far one side is best cut depends on the step that the other leaves.
    """

    def decide(self, seen: Histogram) -> Range:
        used = seen.counts > 0
        centres, counts = seen.centres()[used], seen.counts[used]
        shares = np.arange(_TRIES, 0, -1) / _TRIES
        low, high = seen.low, seen.high
        for _ in range(2):
            high = min(seen.high * shares, key=lambda side: _squared_error(centres, counts, low, side))
            low = min(seen.low * shares, key=lambda side: _squared_error(centres, counts, side, high))
        return float(low), float(high)


def _squared_error(centres: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float) -> float:
    """Of putting the histogram on 256 levels from ``low`` to ``high``, 0 being one of them."""
    step = max((high - low) / 255.0, 1e-30)
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(centres / step), -zero, 255.0 - zero)
    return float(np.dot(counts, (levels * step - centres) ** 2))


class Entropy(_OfHistogram):
    """Migacz's search over the magnitudes: at which threshold 128 levels say most about the distribution.

    For each threshold, P is the histogram up to it, with everything beyond added to its last bin; Q is the same
    histogram merged into 128 levels and spread again over the bins that were not empty. The threshold with the least
    KL(P || Q) clips both signs; a side that does not reach it keeps its own extreme.
    """

    def decide(self, seen: Histogram) -> Range:
        magnitudes = (seen.counts[HALF:] + seen.counts[:HALF][::-1]).astype(np.float64)
        magnitudes[0] = magnitudes[1]  # Migacz, as TensorRT does it: the zeros of a ReLU say nothing about the range
        filled = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 1
        stops = range(_LEVELS, filled + 1, max(1, filled // 256))
        divergences = {stop: _divergence(magnitudes, stop) for stop in stops}
        best = min(divergences, key=lambda stop: divergences[stop], default=filled)
        threshold = best * seen.width
        return -threshold, threshold


def _divergence(magnitudes: NDArray[np.float64], stop: int) -> float:
    """KL(P || Q) of clipping at bin ``stop``."""
    inside = magnitudes[:stop]
    wanted = inside.copy()
    wanted[-1] += magnitudes[stop:].sum()
    level = np.arange(stop) * _LEVELS // stop
    filled = inside > 0
    sums = np.bincount(level, inside, _LEVELS)
    bins = np.bincount(level, filled, _LEVELS)
    found = np.where(filled, (sums / np.maximum(bins, 1))[level], 0.0)
    if not wanted.sum() or not found.sum():
        return np.inf
    wanted, found = wanted / wanted.sum(), found / found.sum()
    there = wanted > 0
    return float(np.sum(wanted[there] * np.log(wanted[there] / np.maximum(found[there], 1e-12))))


_OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMax,
    "percentile-frames": PercentileOfFrames,
    "percentile": Percentile,
    "mse": LeastSquares,
    "entropy": Entropy,
}
