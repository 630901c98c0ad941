"""Proposals are exact: against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler.search.knapsack import Option, proposals

FLOAT = Option("fp32", 0.0, 0.0)


def total(units: list[list[Option]], choice: tuple[int, ...]) -> tuple[float, float]:
    """Time and damage."""
    chosen = [options[index] for options, index in zip(units, choice, strict=True)]
    return sum(o.time for o in chosen), sum(o.damage for o in chosen)


def random_units(seed: int, count: int, options: int = 1) -> list[list[Option]]:
    random = np.random.default_rng(seed)
    return [
        [FLOAT, *(Option(f"o{i}", -float(random.gamma(2.0)), float(random.gamma(0.7))) for i in range(options))]
        for _ in range(count)
    ]


@pytest.mark.parametrize(("seed", "count", "options"), [(1, 10, 1), (2, 7, 2), (3, 5, 4), (4, 1, 1)])
def test_no_choice_is_as_fast_and_less_damaged_than_a_proposal(seed: int, count: int, options: int) -> None:
    units = random_units(seed, count, options)
    everything = [total(units, c) for c in itertools.product(*(range(len(u)) for u in units))]
    tick = (max(t for t, _ in everything) - min(t for t, _ in everything)) / 2000

    found = [total(units, choice) for choice in proposals(units)]

    for time, damage in found:  # a time is rounded up to a tick per unit, so that much faster ones are no rivals
        assert not any(t < time - count * tick and d < damage - 1e-9 for t, d in everything)


def test_the_ends_are_the_fastest_choice_and_the_unhurt_one() -> None:
    units = random_units(5, 9)

    first, *_, last = proposals(units)

    assert first == (1,) * 9
    assert last == (0,) * 9


def test_proposals_go_from_fast_to_unhurt_and_none_comes_twice() -> None:
    units = random_units(6, 30)
    found = proposals(units)
    totals = [total(units, choice) for choice in found]

    assert 8 <= len(found) == len(set(found)) <= 12
    assert totals == sorted(totals, key=lambda pair: (pair[0], -pair[1]))
    assert all(a[1] > b[1] for a, b in itertools.pairwise(totals))


def test_a_unit_that_quantizing_slows_down_is_never_quantized() -> None:
    units = [[FLOAT, Option("int8", -1.0, 0.1)], [FLOAT, Option("int8", +0.4, 0.0001)]]

    assert {choice[1] for choice in proposals(units)} == {0}


def test_a_unit_that_quantizing_destroys_is_the_first_to_stay() -> None:
    units = [[FLOAT, Option("int8", -1.0, 0.1)] for _ in range(8)]
    units[3] = [FLOAT, Option("int8", -1.0, 50.0)]

    hurt = [choice for choice in proposals(units) if choice[3] == 1]

    assert hurt == [(1,) * 8]  # only the fastest of all


def test_where_nothing_is_to_be_chosen_there_is_one_proposal() -> None:
    assert proposals([]) == [()]
    assert proposals([[FLOAT], [FLOAT]]) == [(0, 0)]
    assert proposals([[FLOAT, Option("int8", 0.5, 0.0)]]) == [(0,)]


def test_many_units_are_no_trouble() -> None:
    assert len(proposals(random_units(7, 300))) == 12
