"""What a position along a tensor's dimension is made of: the units that it disappears with.

A *unit* is what is taken out as one: a channel with everything that carries it, an attention head, a place in each
group of a grouped convolution. A position holds one or more units and disappears as soon as one of them does; a
position that holds none stays for ever. Two positions that must stand or fall together are made one by `unify`; every
doubt is settled by tying more together or by freezing, which costs choice and never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

FROZEN = 0  # the position that never goes
Dim = np.ndarray | None  # one position per index; None: all of them are frozen


class Labels:
    """All positions of one net: ``p`` holds the units that ``_made_of[p]`` leads to, and a unit leads to itself."""

    def __init__(self) -> None:
        self._made_of: list[tuple[int, ...]] = [()]

    def fresh(self, count: int) -> np.ndarray:
        """``count`` new units."""
        first = len(self._made_of)
        self._made_of.extend((first + index,) for index in range(count))
        return np.arange(first, first + count)

    def units(self, position: int) -> tuple[int, ...]:
        """The units that a position holds, outer before inner."""
        parts = self._made_of[position]
        if all(self._made_of[part] == (part,) for part in parts):
            return parts
        found = tuple(dict.fromkeys(unit for part in parts for unit in self.units(int(part))))
        self._made_of[position] = found
        return found

    def unify(self, one: int, other: int) -> None:
        """From now on the two positions hold the same units."""
        left, right = self.units(one), self.units(other)
        mine = [unit for unit in left if unit not in right]
        theirs = [unit for unit in right if unit not in left]
        if len(mine) == 1 and len(theirs) > 1:
            self._made_of[mine[0]] = tuple(theirs)
        elif len(theirs) == 1 and len(mine) > 1:
            self._made_of[theirs[0]] = tuple(mine)
        else:
            for first, second in zip(mine, theirs, strict=False):
                self._made_of[first] = (second,)
            shared = min(len(mine), len(theirs))
            self.freeze_units([*mine[shared:], *theirs[shared:]])

    def bind(self, unit: int, parts: Sequence[int]) -> None:
        """The unit stands for several from now on, and goes with each of them."""
        self._made_of[unit] = tuple(parts)

    def tie(self, units: Sequence[int]) -> None:
        """Makes several units one."""
        for unit in units[1:]:
            self.unify(units[0], unit)

    def freeze_units(self, units: Iterable[int]) -> None:
        """These never go."""
        for unit in units:
            self._made_of[unit] = ()

    def freeze(self, dim: Dim) -> None:
        """No position of ``dim`` ever goes."""
        if dim is not None:
            self.freeze_units(unit for position in dim.tolist() for unit in self.units(position))

    def together(self, one: Dim, other: Dim) -> None:
        """Unifies two dimensions of the same length, position by position."""
        if one is other:
            return
        if one is None or other is None:
            self.freeze(other if one is None else one)
            return
        for first, second in zip(one.tolist(), other.tolist(), strict=True):
            if first != second:
                self.unify(first, second)

    def made(self, parts: Sequence[tuple[int, ...]]) -> Dim:
        """A dimension whose positions hold the given units."""
        if not any(parts):
            return None
        return np.array([self._position(units) for units in parts])

    def _position(self, units: tuple[int, ...]) -> int:
        units = tuple(dict.fromkeys(units))
        if len(units) < 2:
            return units[0] if units else FROZEN
        self._made_of.append(units)
        return len(self._made_of) - 1

    def merge(self, dims: Sequence[Dim], sizes: Sequence[int]) -> Dim:
        """One dimension in place of several neighbours, as a reshape makes it."""
        if all(dim is None for dim in dims):
            return None
        index = np.unravel_index(np.arange(math.prod(sizes)), tuple(sizes))
        columns = [dim[at] for dim, at in zip(dims, index, strict=True) if dim is not None]
        if len(columns) == 1:
            return columns[0]
        rows = np.stack(columns, axis=1).tolist()
        return self.made([tuple(unit for position in row for unit in self.units(position)) for row in rows])

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Several dimensions in place of one, as a reshape makes them: what is left of it must stay a full grid."""
        real = [axis for axis, size in enumerate(sizes) if size > 1]
        if dim is None or len(real) < 2:
            return [dim if axis in real else None for axis in range(len(sizes))]
        return _Grid(self, dim, sizes, real).split()


class _Grid:
    """The positions of one dimension, laid out on the axes that it is split into."""

    def __init__(self, labels: Labels, dim: np.ndarray, sizes: Sequence[int], real: Sequence[int]) -> None:
        self._labels, self._sizes, self._real = labels, sizes, real
        self._at = np.unravel_index(np.arange(len(dim)), tuple(sizes))
        self._holds = [labels.units(position) for position in dim.tolist()]
        self._out: list[list[tuple[int, ...]]] = [[()] * size for size in sizes]
        self._loose: set[int] = set()

    def split(self) -> list[Dim]:
        self._loose = {unit for unit, places in self._places().items() if not self._settle(unit, places)}
        if self._loose:
            ones = all(len(self._loose & set(units)) == 1 for units in self._holds)
            single = ones and len(self._loose) == len(self._holds)
            (self._factor if single else self._close)()
        return [self._labels.made(parts) for parts in self._out]

    def _places(self) -> dict[int, list[int]]:
        places: dict[int, list[int]] = {}
        for place, units in enumerate(self._holds):
            for unit in units:
                places.setdefault(unit, []).append(place)
        return places

    def _settle(self, unit: int, places: list[int]) -> bool:
        """Gives the unit to the axis whose slices it fills, if it fills any."""
        if len(places) == len(self._holds):  # it fills everything, and everything cannot go
            self._labels.freeze_units([unit])
            return True
        for axis in self._real:
            values = np.unique(self._at[axis][places])
            if len(values) * len(self._holds) == len(places) * self._sizes[axis]:
                self._give(axis, values.tolist(), unit)
                return True
        return False

    def _give(self, axis: int, values: Iterable[int], unit: int) -> None:
        for value in values:
            self._out[axis][value] = (*self._out[axis][value], unit)

    def _factor(self) -> None:
        """Every position has a unit of its own: each becomes a row's unit and a column's unit."""
        axes = {axis: self._labels.fresh(self._sizes[axis]).tolist() for axis in self._real}
        for place, units in enumerate(self._holds):
            (unit,) = (u for u in units if u in self._loose)
            self._labels.bind(unit, [axes[axis][self._at[axis][place]] for axis in self._real])
        for axis, units in axes.items():
            for value, unit in enumerate(units):
                self._give(axis, [value], unit)

    def _close(self) -> None:
        """Ties the loose units of each slice of the longest axis, so that they fill slices of it."""
        axis = max(self._real, key=lambda a: self._sizes[a])
        slices: list[list[int]] = [[] for _ in range(self._sizes[axis])]
        for place, units in enumerate(self._holds):
            found = [unit for unit in units if unit in self._loose]
            slices[self._at[axis][place]] += found or [FROZEN]
        for found in slices:
            self._labels.tie(found)
        for value, found in enumerate(slices):
            for unit in self._labels.units(found[0]):
                self._give(axis, [value], unit)
