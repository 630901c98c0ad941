"""Which units to run in which way, by what each costs and buys: proposals, which are then built and measured. Pure.

A multiple-choice knapsack (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11): of each unit one
option, the sum of the times within a limit, the sum of the damages least. Solved exactly by dynamic programming over
whole ticks of time, for every limit at once: one table gives all proposals. That damages and times add up is a model
and wrong in detail, which is why a proposal is only that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROPOSALS = 12
_TICKS = 2000  # between the fastest and the slowest choice: far finer than any of the times was measured


@dataclass(frozen=True)
class Option:
    """One way to run one unit.

    Attributes:
        time: what it adds to the whole model's time, against any fixed base; may be negative.
        damage: what it adds to the damage; 0 is fp32.
    """

    name: str
    time: float
    damage: float


def proposals(units: Sequence[Sequence[Option]], count: int = PROPOSALS) -> list[tuple[int, ...]]:
    """For ``count`` limits from the fastest choice to the least damaged one, the best choice within each.

    Args:
        units: each unit's options.

    Returns:
        The index of each unit's option; each choice once, fastest first.
    """
    if not units:
        return [()]
    fastest = sum(min(option.time for option in options) for options in units)
    unhurt = sum(min(options, key=lambda o: (o.damage, o.time)).time for options in units)
    step = (unhurt - fastest) / _TICKS or 1.0
    weights = [_ticks(options, step) for options in units]
    limits = np.linspace(0, _TICKS + len(units), count).astype(int)  # each unit's time is rounded up to a tick
    return list(dict.fromkeys(_solve(units, weights, limits)))


def _ticks(options: Sequence[Option], step: float) -> list[int]:
    """Whole ticks beyond the unit's own fastest option, rounded up: a limit is kept."""
    least = min(option.time for option in options)
    return [int(np.ceil((option.time - least) / step - 1e-9)) for option in options]


def _solve(
    units: Sequence[Sequence[Option]], weights: Sequence[Sequence[int]], limits: NDArray[np.int64]
) -> list[tuple[int, ...]]:
    """The best choice for each limit, in ticks.

    ``least[t]`` is the least damage within ``t`` ticks of the units so far; ``took[u][t]`` the option that made it.
    """
    size = int(limits[-1]) + 1
    least, took = np.zeros(size), np.zeros((len(units), size), np.int16)
    for number, (options, ticks) in enumerate(zip(units, weights, strict=True)):
        damages = np.full((len(options), size), np.inf)
        for index, (option, tick) in enumerate(zip(options, ticks, strict=True)):
            if tick < size:
                damages[index, tick:] = least[: size - tick] + option.damage
        took[number] = damages.argmin(axis=0)
        least = damages.min(axis=0)
    return [_trace(took, weights, int(limit)) for limit in limits]


def _trace(took: NDArray[np.int16], weights: Sequence[Sequence[int]], limit: int) -> tuple[int, ...]:
    """Follows the table back from a limit to each unit's option."""
    choice: list[int] = []
    for number in range(len(weights) - 1, -1, -1):
        option = int(took[number, limit])
        choice.append(option)
        limit -= weights[number][option]
    return tuple(reversed(choice))
