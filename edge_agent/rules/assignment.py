"""Who is who: the pairing of rows and columns that is best as a whole, exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]


def pairs(weights: Weights) -> list[tuple[int, int]]:
    """The pairs (row, column), each row and column in one at most, whose weights have the largest sum.

    Args:
        weights: [rows, columns]; a pair of weight 0 or less is never made.
    """
    possible = weights > 0.0
    choices, rivals = possible.sum(axis=1), possible.sum(axis=0)
    rows, columns = np.nonzero(possible)
    alone = (choices[rows] == 1) & (rivals[columns] == 1)
    found = list(zip(rows[alone].tolist(), columns[alone].tolist(), strict=True))
    hard_rows, hard_columns = np.unique(rows[~alone]), np.unique(columns[~alone])
    if hard_rows.size:
        hard = np.maximum(weights[np.ix_(hard_rows, hard_columns)], 0.0)
        found += [(int(hard_rows[r]), int(hard_columns[c])) for r, c in _contested(hard.tolist())]
    return sorted(found)


def _contested(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The same, for few rows: each row in turn gets a column, and others another one where that is best as a whole.

    Shortest augmenting paths with potentials: Kuhn 1955; Jonker and Volgenant 1987.
    """
    rows, columns = len(weights), len(weights[0])
    if rows > columns:
        return [(r, c) for c, r in _contested(list(zip(*weights, strict=True)))]
    owner = [-1] * columns
    potentials = [0.0] * rows, [0.0] * columns
    for row in range(rows):
        _augment(weights, row, owner, potentials)
    return [(r, c) for c, r in enumerate(owner) if r >= 0 and weights[r][c] > 0.0]


def _augment(
    weights: Sequence[Sequence[float]], row: int, owner: list[int], potentials: tuple[list[float], list[float]]
) -> None:
    """Finds the cheapest way (cost: less weight) from ``row`` to a column that nobody has, and moves all along it."""
    of_row, of_column = potentials
    cost = [float("inf")] * len(owner)  # of the cheapest way to each column
    via = [-1] * len(owner)  # the column before it on that way
    reached: dict[int, float] = {}
    here, last, length = row, -1, 0.0
    while here >= 0:
        for column in range(len(owner)):
            onward = length - weights[here][column] - of_row[here] - of_column[column]
            if column not in reached and onward < cost[column]:
                cost[column], via[column] = onward, last
        last = min((column for column in range(len(owner)) if column not in reached), key=cost.__getitem__)
        length = reached[last] = cost[last]
        here = owner[last]
    of_row[row] += length
    for column, at in reached.items():
        if column != last:
            of_row[owner[column]] += length - at
            of_column[column] -= length - at
    while last >= 0:
        before = via[last]
        owner[last] = owner[before] if before >= 0 else row
        last = before
