"""Which units may go, how much each weighs, and which of them to take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .analysis import Analysis
from .graph import attribute
from .labels import Dim

Place = tuple[str, int]  # a parameter's name and one of its axes


@dataclass(frozen=True)
class Block:
    """Units that appear in the same places equally often, so that one is as good as another.

    Attributes:
        scores: how much each unit matters, about 1 on average.
        run: how many neighbouring channels one unit is, where that is the same everywhere.
        rivals: numbers of blocks that cut the same channels another way (a head's width against the number of heads).
    """

    units: tuple[int, ...]
    scores: tuple[float, ...]
    run: int
    rivals: frozenset[int]


def find_blocks(net: Analysis) -> list[Block]:
    """Every block of at least two units, in the graph's order."""
    where = _occurrences(net)
    by_signature: dict[tuple[tuple[Place, int], ...], list[int]] = {}
    for unit, places in where.items():
        signature = tuple(sorted((place, len(found)) for place, found in places.items()))
        by_signature.setdefault(signature, []).append(unit)
    groups = [sorted(units) for units in by_signature.values() if len(units) > 1]
    number = {unit: index for index, units in enumerate(groups) for unit in units}
    rivals = _rivals(net, number)
    weights = {place: _weights(net, place) for place in {p for places in where.values() for p in places}}
    return [
        Block(
            units=tuple(units),
            scores=tuple(_scores(units, where, weights)),
            run=min(_run(found) for place, found in where[units[0]].items() if place[1] >= 0),
            rivals=frozenset(rivals.get(index, ())),
        )
        for index, units in enumerate(groups)
    ]


def _occurrences(net: Analysis) -> dict[int, dict[Place, list[int]]]:
    """By unit: where it stands in parameters, and (as axis -1) in pieces that are cut out."""
    where: dict[int, dict[Place, list[int]]] = {}
    for place, dim in _placed(net):
        for position, holder in enumerate(dim.tolist()):
            for unit in net.labels.units(holder):
                where.setdefault(unit, {}).setdefault(place, []).append(position)
    return {unit: places for unit, places in where.items() if any(axis >= 0 for _, axis in places)}


def _placed(net: Analysis) -> Iterator[tuple[Place, np.ndarray]]:
    dims: list[tuple[Place, Dim]] = [((n, axis), d) for n, dims in net.held.items() for axis, d in enumerate(dims)]
    dims += [((f"cut {index}", -1), dim) for index, dim in enumerate(net.cuts)]
    return ((place, dim) for place, dim in dims if dim is not None)


def _rivals(net: Analysis, number: Mapping[int, int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for _, dim in _placed(net):
        for holder in dim.tolist():
            blocks = {number[unit] for unit in net.labels.units(holder) if unit in number}
            for one, other in itertools.permutations(blocks, 2):
                found.setdefault(one, set()).add(other)
    return found


def _run(positions: Sequence[int]) -> int:
    """Length of the runs of neighbours, or 1 if they differ."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    lengths = {len(run) for run in np.split(np.asarray(positions), breaks)}
    return lengths.pop() if len(lengths) == 1 else 1


def _weights(net: Analysis, place: Place) -> np.ndarray | None:
    """The sum of squares at each index of one axis; None for what is not learned."""
    name, axis = place
    value = attribute(net.module, name) if axis >= 0 else None
    if not isinstance(value, torch.nn.Parameter) or not value.is_floating_point():
        return None
    other = [a for a in range(value.dim()) if a != axis]
    squares = value.detach().double().square()
    return (squares.sum(other) if other else squares).numpy()


def _scores(
    units: Sequence[int], where: Mapping[int, Mapping[Place, Sequence[int]]], weights: Mapping[Place, np.ndarray | None]
) -> np.ndarray:
    """Group magnitude (Fang et al., DepGraph, CVPR 2023), each place scaled to a mean of one so that none drowns."""
    total, counted = np.zeros(len(units)), 0
    for place in where[units[0]]:
        found = weights[place]
        if found is None:
            continue
        values = np.array([found[where[unit][place]].sum() for unit in units])
        if (mean := values.mean()) > 0:
            total, counted = total + values / mean, counted + 1
    return total / max(counted, 1)


def choose(blocks: Sequence[Block], ratio: float, round_to: int) -> frozenset[int]:
    """The lightest units, about ``ratio`` of each block; of rivals only the finer block gives.

    Args:
        round_to: what is left of a block is a multiple of so many channels, where the block is large enough.
    """
    taken: set[int] = set()
    gone: set[int] = set()
    order = sorted(range(len(blocks)), key=lambda i: (-len(blocks[i].units) / _step(blocks[i], round_to), i))
    for index in order:
        block = blocks[index]
        count = len(block.units) - left(len(block.units), ratio, _step(block, round_to))
        if count and not block.rivals & taken:
            taken.add(index)
            lightest = sorted(range(len(block.units)), key=lambda i: (block.scores[i], i))[:count]
            gone.update(block.units[i] for i in lightest)
    return frozenset(gone)


def _step(block: Block, round_to: int) -> int:
    """Units that leave together, so that channels stay a multiple; fewer where the block is small."""
    step = round_to // math.gcd(block.run, round_to)
    while step > 1 and len(block.units) < 2 * step:
        step //= 2
    return step


def left(count: int, ratio: float, step: int) -> int:
    """How many of ``count`` stay: the nearest multiple of ``step``, one step at least.

    >>> left(64, 0.3, 8), left(20, 0.3, 8), left(3, 0.3, 1), left(64, 0.0, 8), left(12, 0.9, 4)
    (48, 16, 2, 64, 4)
    """
    if ratio <= 0:
        return count
    return min(count, max(step, round(count * (1 - ratio) / step) * step))
