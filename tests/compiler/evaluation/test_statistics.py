"""Bounds of paired differences: their coverage is computed over every outcome, or simulated from fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compiler.evaluation.statistics import (
    Interval,
    _score_bound,
    judge_drop,
    median_at_most,
    median_interval,
    paired_drop,
    paired_interval,
    paired_needs,
    planned_drop,
    share_interval,
    time_ratio,
    to_plan,
)

# Right or wrong


def outcomes(samples: int) -> list[tuple[int, int]]:
    return [(lost, won) for lost in range(samples + 1) for won in range(samples + 1 - lost)]


def chance(lost: int, won: int, samples: int, loss: float, gain: float) -> float:
    rest = samples - lost - won
    ways = math.comb(samples, lost) * math.comb(samples - lost, won)
    return ways * loss**lost * gain**won * (1 - loss - gain) ** rest


def coverage(bounds: dict[tuple[int, int], float], samples: int, loss: float, gain: float) -> float:
    """The chance that the bound is not below the truth: exact, over every outcome."""
    drop = 100 * (loss - gain)
    return sum(chance(*pair, samples, loss, gain) for pair, bound in bounds.items() if bound >= drop)


def test_so_many_samples_plan_for_half_a_point_where_nothing_differs() -> None:
    more = to_plan(0.5, 463)
    assert planned_drop(0, 0, 463 + more, 463 + more) <= 0.5 < planned_drop(0, 0, 462 + more, 462 + more)
    assert 1200 < 463 + more < 1350  # 2.54 squared, over half a hundredth
    assert to_plan(0.5, 5000) == 0


@pytest.mark.parametrize("samples", [6, 16])
def test_the_bound_covers_whatever_the_truth_is(samples: int) -> None:
    bounds = {pair: paired_drop(*pair, samples).at_most for pair in outcomes(samples)}
    truths = [
        (loss, gain) for loss in np.linspace(0.0, 1.0, 26) for gain in np.linspace(0.0, 1.0, 26) if loss + gain <= 1
    ]

    found = {(loss, gain): coverage(bounds, samples, loss, gain) for loss, gain in truths}

    assert min(found.values()) >= 0.95, min(found, key=found.__getitem__)
    assert min(found.values()) < 0.97  # and it promises no less than it could


def test_the_score_interval_alone_would_not_cover() -> None:
    """What the exact bound is for, and that the test above can fail."""
    bounds = {pair: 100 * _score_bound(*pair, 16, 1.6449) for pair in outcomes(16)}

    assert min(coverage(bounds, 16, loss, 0.0) for loss in np.linspace(0.0, 0.3, 31)) < 0.94


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "gain"), [(0.005, 0.0), (0.0075, 0.0025), (0.01, 0.01), (0.03, 0.02), (0.001, 0.0)])
def test_the_bound_covers_where_few_of_many_samples_are_discordant(loss: float, gain: float) -> None:
    samples, draws = 400, 2000
    random = np.random.default_rng(11)
    drawn = random.multinomial(samples, [loss, gain, 1 - loss - gain], draws)
    known = {pair: paired_drop(*pair, samples).at_most for pair in {(int(x), int(y)) for x, y, _ in drawn}}

    covered = np.mean([known[int(x), int(y)] >= 100 * (loss - gain) for x, y, _ in drawn])

    assert covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("samples", [30, 299, 1000, 5000])
def test_without_any_difference_the_bound_is_the_rule_of_three(samples: int) -> None:
    exact = 100 * (1 - 0.05 ** (1 / samples))  # one-sided bound of a rate that was never seen

    assert exact <= paired_drop(0, 0, samples).at_most <= 1.05 * exact


def test_with_many_samples_the_bound_is_the_normal_one() -> None:
    drop = paired_drop(400, 360, 4000)

    assert drop.points == pytest.approx(1.0)
    assert drop.error == pytest.approx(100 * math.sqrt((0.19 - 0.01**2) / 4000))
    assert drop.at_most == pytest.approx(drop.points + 1.645 * drop.error, rel=0.01)


def test_more_losses_never_lower_the_bound_and_more_wins_never_raise_it() -> None:
    bounds = {pair: paired_drop(*pair, 12).at_most for pair in outcomes(12)}

    for (lost, won), bound in bounds.items():
        assert bound <= bounds.get((lost + 1, won), 100.0) + 0.01
        assert bound >= bounds.get((lost, won + 1), -100.0) - 0.01


def test_counts_that_do_not_fit_are_a_mistake() -> None:
    for lost, won, samples in [(0, 0, 0), (-1, 0, 5), (3, 3, 5)]:
        with pytest.raises(ValueError, match="lost"):
            paired_drop(lost, won, samples)


def test_half_a_point_at_two_per_cent_discordant_needs_about_2200_samples() -> None:
    drop = paired_drop(10, 10, 1000)
    verdict = judge_drop(drop, 10, 10, budget=0.5)

    assert not verdict.holds
    assert verdict.needs_more is not None
    assert 1000 + verdict.needs_more == pytest.approx(2200, rel=0.07)


@pytest.mark.parametrize(("lost", "won", "samples", "budget"), [(0, 0, 100, 0.5), (2, 1, 400, 1.0), (8, 4, 800, 1.0)])
def test_as_many_more_samples_as_it_names_do_show_it(lost: int, won: int, samples: int, budget: float) -> None:
    verdict = judge_drop(paired_drop(lost, won, samples), lost, won, budget)
    assert verdict.needs_more is not None
    grown = samples + verdict.needs_more
    share = grown / samples

    after = paired_drop(round(lost * share), round(won * share), grown)
    well_before = paired_drop(round(lost * share * 0.8), round(won * share * 0.8), round(grown * 0.8))

    assert after.at_most <= budget * 1.03  # counts are whole, the projection is not
    assert well_before.at_most > budget


def test_a_drop_past_the_budget_is_helped_by_no_number_of_samples() -> None:
    verdict = judge_drop(paired_drop(20, 2, 1000), 20, 2, budget=1.0)

    assert (verdict.holds, verdict.needs_more) == (False, None)


def test_a_drop_that_is_shown_needs_nothing() -> None:
    verdict = judge_drop(paired_drop(5, 5, 5000), 5, 5, budget=0.5)

    assert (verdict.holds, verdict.needs_more) == (True, None)


def test_what_was_planned_for_is_confirmed_four_times_of_five() -> None:
    planned = planned_drop(4, 2, 400, planned=1500)
    random = np.random.default_rng(3)
    drawn = random.multinomial(1500, [0.01, 0.005, 0.985], 60)

    confirmed = np.mean([paired_drop(int(x), int(y), 1500).at_most <= planned for x, y, _ in drawn])

    assert 0.7 <= confirmed <= 0.95


@pytest.mark.parametrize("samples", [6, 12])
def test_both_ends_hold_the_truth_nineteen_times_of_twenty(samples: int) -> None:
    found = {pair: paired_interval(*pair, samples) for pair in outcomes(samples)}
    truths = [(loss, gain) for loss in np.linspace(0, 1, 11) for gain in np.linspace(0, 1, 11) if loss + gain <= 1]

    held = [
        sum(
            chance(*pair, samples, *truth)
            for pair, i in found.items()
            if i.low <= 100 * (truth[1] - truth[0]) <= i.high
        )
        for truth in truths
    ]

    assert min(held) >= 0.95


def test_an_interval_turns_around_with_what_is_compared() -> None:
    one, other = paired_interval(12, 3, 300), paired_interval(3, 12, 300)

    assert (one.low, one.value, one.high) == (-other.high, -3.0, -other.low)
    assert one.high < 0 < other.low


@pytest.mark.parametrize(("lost", "won", "samples"), [(6, 3, 200), (12, 20, 800), (30, 20, 1000)])
def test_as_many_more_as_it_says_would_tell_two_apart(lost: int, won: int, samples: int) -> None:
    needs = paired_needs(lost, won, samples)

    assert needs is not None
    share = 1.1 * (samples + needs) / samples  # counts are whole, and the exact bound lies a little beyond the score's
    after = paired_interval(round(lost * share), round(won * share), round(samples * share))
    half_way = (1 + share) / 2
    before = paired_interval(round(lost * half_way), round(won * half_way), round(samples * half_way))
    assert after.low > 0 or after.high < 0
    assert before.low <= 0 <= before.high


def test_nothing_is_needed_where_it_is_told_and_nothing_helps_where_nothing_differs() -> None:
    assert paired_needs(40, 5, 400) is None
    assert paired_needs(7, 7, 400) is None


def test_a_share_has_its_exact_interval() -> None:
    """Clopper and Pearson: 97 of 99; all of 20."""
    found = share_interval(97, 99)
    assert (found.low, found.high) == (pytest.approx(92.89, abs=0.01), pytest.approx(99.75, abs=0.01))
    assert (share_interval(20, 20).low, share_interval(20, 20).high) == (pytest.approx(83.16, abs=0.01), 100.0)


# Time


def series(ratio: float, rounds: int, seed: int) -> tuple[list[float], list[float]]:
    """Two models timed in turn on a machine that is slow for stretches, and now and then hiccups."""
    random = np.random.default_rng(seed)
    drift = 1 + 0.5 * (np.sin(np.arange(rounds) / 9.0) > 0.3)
    base = drift * random.lognormal(0.0, 0.05, rounds)
    times = ratio * drift * random.lognormal(0.0, 0.05, rounds)
    times[random.integers(0, rounds, rounds // 20)] *= 4
    return list(times), list(base)


def test_a_ratio_holds_its_ground_on_a_machine_that_wavers() -> None:
    found = time_ratio(*series(0.8, 120, 1))

    assert found.median == pytest.approx(0.8, abs=0.03)
    assert found.median <= found.at_most < 0.85
    assert found.faster


def test_the_bound_of_a_ratio_covers() -> None:
    covered = np.mean([time_ratio(*series(0.9, 60, seed)).at_most >= 0.9 for seed in range(300)])

    assert covered >= 0.93


@pytest.mark.parametrize("ratio", [0.965, 1.0, 1.2])
def test_what_is_not_beyond_doubt_faster_is_not_called_so(ratio: float) -> None:
    assert not time_ratio(*series(ratio, 60, 5)).faster


@pytest.mark.parametrize(
    ("ratio", "had", "verdict"),
    [
        (0.5, 0.1, "faster"),
        (0.9, 0.1, "undecided"),
        (0.9, 0.95, "faster"),
        (1.05, 0.1, "undecided"),
        (1.05, 0.95, "not faster"),
        (1.5, 0.1, "not faster"),
    ],
)
def test_a_busy_machine_decides_only_what_is_far_from_even(ratio: float, had: float, verdict: str) -> None:
    found = time_ratio(*series(ratio, 120, 1), had)

    assert found.faster == (verdict == "faster")
    assert found.undecided == (verdict == "undecided")


def test_what_is_undecided_is_told_with_what_to_do() -> None:
    said = time_ratio(*series(1.0, 120, 1), 0.19).busy

    assert said.startswith("the machine is too busy to time on: 19% of a processor, where ")
    assert said.endswith("run again when it is quiet, --resume goes on here")


def test_fewer_than_thirty_rounds_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="30 at least"):
        time_ratio([1.0] * 29, [1.0] * 29)
    with pytest.raises(ValueError, match="as many of each"):
        time_ratio([1.0] * 40, [1.0] * 39)


def test_the_bound_of_a_median_time_lies_a_little_above_it() -> None:
    times = list(np.random.default_rng(4).lognormal(1.0, 0.1, 200))

    assert np.median(times) <= median_at_most(times) < 1.1 * np.median(times)


def test_a_medians_upper_end_needs_many_values_to_come_close() -> None:
    assert median_at_most([1.0, 1.0, 5.0]) == 5.0
    assert median_at_most([1.0] * 99 + [9.0]) == 1.0
    few, many = ([0.9 + 0.1 * (i % 10) / 10 for i in range(count)] for count in (6, 600))
    assert median_at_most(few) >= median_at_most(many)


def test_the_ends_of_a_medians_interval_are_the_order_statistics_of_the_tables() -> None:
    """David and Nagaraja's table for 95 %: n = 10 takes the 2nd and the 9th, n = 20 the 6th and the 15th."""
    assert median_interval([float(k) for k in range(1, 11)]) == Interval(2.0, 5.5, 9.0)
    assert median_interval([float(k) for k in range(1, 21)]) == Interval(6.0, 10.5, 15.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_values_give_their_extremes(count: int) -> None:
    found = median_interval([float(k) for k in range(count)])

    assert (found.low, found.high) == (0.0, count - 1)


@pytest.mark.parametrize("count", [25, 40, 200])
def test_a_medians_interval_holds_the_true_one_as_often_as_it_says(count: int) -> None:
    random = np.random.default_rng(1)
    found = [median_interval(list(random.normal(1.0, 0.2, count))) for _ in range(1000)]

    held = np.mean([f.low <= 1.0 <= f.high for f in found])

    assert 0.94 <= held <= 0.985  # conservative: the steps are discrete
