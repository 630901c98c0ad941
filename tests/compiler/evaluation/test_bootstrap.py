"""Bounds of differences in average precision, held against what is known of means, and simulated from fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.evaluation.bootstrap import bootstrap_drop, bootstrap_interval, bootstrap_needs, judge_bootstrap
from compiler.evaluation.statistics import Interval


def test_a_bootstraps_interval_has_two_ends_and_says_what_would_tell() -> None:
    gains = np.random.default_rng(2).normal(0.0, 10.0, 100)
    gains += 0.5 - gains.mean()

    found = bootstrap_interval(lambda weights: float((weights * gains).sum() / weights.sum()), 100, 500)
    needs = bootstrap_needs(found, 100)

    assert found.low == pytest.approx(0.5 - 1.96, abs=0.3)
    assert found.high == pytest.approx(0.5 + 1.96, abs=0.3)
    assert needs == pytest.approx(100 * (1.96 / 0.5) ** 2 - 100, rel=0.3)
    assert bootstrap_needs(Interval(0.1, 0.5, 0.9), 100) is None
    assert bootstrap_needs(Interval(-1.0, 0.0, 1.0), 100) is None


def test_few_images_tell_nothing_apart() -> None:
    found = bootstrap_interval(lambda _weights: 40.0, 12)

    assert (found.low, found.high) == (-100.0, 100.0)
    assert bootstrap_needs(found, 12) == 18


def test_a_bootstrap_of_a_mean_finds_what_the_normal_bound_does() -> None:
    drops = np.random.default_rng(1).normal(0.3, 2.0, 400)

    found = bootstrap_drop(lambda weights: float((weights * drops).sum() / weights.sum()), 400, 500)

    assert found.points == pytest.approx(drops.mean())
    assert found.error == pytest.approx(0.1, rel=0.15)
    assert found.at_most == pytest.approx(found.points + 1.645 * found.error, rel=0.1)
    assert found == bootstrap_drop(lambda weights: float((weights * drops).sum() / weights.sum()), 400, 500)


def test_few_images_bound_nothing_and_say_how_many_would() -> None:
    drop = bootstrap_drop(lambda _weights: 0.0, 12)

    assert drop.at_most == 100.0
    assert judge_bootstrap(drop, 1.0).needs_more == 18


def test_the_images_that_a_bootstrap_wants_go_with_the_square_of_the_width() -> None:
    drops = np.random.default_rng(2).normal(0.0, 10.0, 100)
    drops -= drops.mean()
    drop = bootstrap_drop(lambda weights: float((weights * drops).sum() / weights.sum()), 100, 500)

    verdict = judge_bootstrap(drop, drop.at_most / 2)

    assert verdict.needs_more == pytest.approx(300, abs=2)
    assert judge_bootstrap(drop, 100.0).holds
    assert judge_bootstrap(drop, -1.0).needs_more is None
