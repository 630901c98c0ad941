"""Intervals of paired measurements, held against simulation and against worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.paired import difference_interval


def test_a_difference_counts_only_what_one_got_and_the_other_did_not() -> None:
    a = [True] * 50 + [False] * 50
    b = [True] * 45 + [False] * 45 + [True] * 10

    found = difference_interval(a, b)

    assert found.value == pytest.approx(5.0)
    assert found.low < 5.0 < found.high
    assert found.low < 0, "fifteen changed answers of a hundred show nothing yet"


def test_the_same_answers_differ_by_nothing_and_more_samples_say_it_more_sharply() -> None:
    few, many = (difference_interval([True, False] * n, [True, False] * n) for n in (10, 1000))

    assert few.value == many.value == 0.0
    assert few.high > 5 * many.high > 0


@pytest.mark.parametrize("count", [40, 400])
def test_a_differences_interval_holds_the_true_one_as_often_as_it_says(count: int) -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(2000):
        draw = random.random(count)
        a, b = draw < 0.85, (draw < 0.80) | (draw > 0.97)  # b loses 5 % of a's and gains 3 %: 2 points fewer
        found = difference_interval(a.tolist(), b.tolist())
        held += found.low <= -2.0 <= found.high
    assert held / 2000 >= 0.93
    assert count == 40 or held / 2000 <= 0.98  # few samples are given more room than they need
