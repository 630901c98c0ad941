"""Ranges that fit the values that they are laid on, for those that do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.evidence.layers import groups
from compiler.graph.onnxfile import Probe

Array = NDArray[np.generic]
Range = tuple[float, float]

_ILL_FITTING = 4.0  # rounding costs so many times the noise power of the best range: one bit too wide
SAME_FAULT = 0.01  # of the worst misfit: what fits ill by less than that is not what went wrong
_SHRINK = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)
_MOST_VALUES = 1 << 16  # of each tensor, evenly: enough to tell a range by


def fitting_ranges(
    graph: onnx.ModelProto, ranges: Mapping[str, Range], tensors: Sequence[Array], *, same_fault: float = SAME_FAULT
) -> dict[str, Range]:
    """Better ranges for the values of ``graph`` whose range in ``ranges`` fits them worst, the worst first.

    The best of ten shrunken ranges by mean squared error on a grid of 8 bits, for each value by itself. One that costs
    at least four times the noise of the best does not fit.

    Args:
        same_fault: a misfit that is less than this share of the worst is left alone; 0 leaves none.
    """
    misfits = {}
    for name, found in _samples(graph, ranges, tensors):
        best = min(_shrunken(found), key=lambda r: _noise(found, r))
        misfits[name] = (_noise(found, ranges[name]) / _noise(found, best), best)
    worst = max((misfit for misfit, _ in misfits.values()), default=0.0)
    least = max(_ILL_FITTING, worst * same_fault)
    return {name: best for name, (misfit, best) in sorted(misfits.items(), key=lambda m: -m[1][0]) if misfit > least}


def _samples(
    graph: onnx.ModelProto, ranges: Mapping[str, Range], tensors: Sequence[Array]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Some of the numbers that each value takes that has a range; a few values are held at a time."""
    entry = graph.graph.input[0].name
    inner = [value for node in graph.graph.node for value in node.output if value in ranges]
    if tensors and entry in ranges:
        yield entry, _some(tensors)
    for group in groups(graph, inner) if tensors else ():
        probe = Probe(graph, group, threads=1)
        runs = [[_some([value]) for _, value in probe(tensor)] for tensor in tensors]
        yield from ((name, np.concatenate(parts)) for name, *parts in zip(group, *runs, strict=True))


def _some(arrays: Iterable[Array]) -> NDArray[np.float64]:
    flat = (np.asarray(array).reshape(-1) for array in arrays)
    return np.concatenate([a[:: max(1, len(a) // _MOST_VALUES)].astype(np.float64) for a in flat])


def _shrunken(found: NDArray[np.float64]) -> Iterator[Range]:
    low, high = min(float(found.min()), 0.0), max(float(found.max()), 0.0, 1e-6)
    return ((low * share, high * share) for share in _SHRINK)


def _noise(found: NDArray[np.float64], grid: Range) -> float:
    """Mean squared error of rounding to 256 steps over ``grid``, and clipping at its ends."""
    low, high = grid
    step = max((high - low) / 255, 1e-12)
    rounded = np.clip(np.rint(found / step), np.rint(low / step), np.rint(high / step)) * step
    return float(np.mean((found - rounded) ** 2)) + 1e-30
