"""What is made of measured candidates, as values."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.evaluation.statistics import Ratio
from compiler.search.budget import Budget
from compiler.search.choice import Trial, choose, front, obstacle, repairs, undecided
from compiler.search.sensitivity import Gain, by_macs, divergence, gain, settle

BUDGET = Budget(max_drop=1.0)


def trial(cost: float, drop: float, *keep: str, planned: float | None = None, **other: object) -> Trial:
    values = {"time": Ratio(cost, cost + 0.02), "ms": 10 * cost, "bytes": 100, "rung": 0}
    expected = drop + 0.3 if planned is None else planned
    return Trial(keep=frozenset(keep), drop=drop, planned=expected, cost=cost, **{**values, **other})


# The choice


def test_the_fastest_that_will_probably_be_confirmed_is_chosen() -> None:
    reckless, sound, timid = trial(0.5, 0.9), trial(0.6, 0.2), trial(0.8, 0.0)

    assert choose([reckless, sound, timid], BUDGET) is sound


def test_where_none_will_probably_be_confirmed_the_best_chance_is_taken() -> None:
    assert choose([trial(0.5, 0.9), late := trial(0.7, 0.8)], BUDGET) is late


def test_times_that_are_alike_leave_the_choice_to_the_drop() -> None:
    assert choose([trial(0.600, 0.3), better := trial(0.612, 0.1), trial(0.7, 0.0)], BUDGET) is better


def test_of_harmless_ones_the_fastest_is_chosen_even_if_nothing_can_be_shown() -> None:
    one, other = trial(0.5, 0.0, planned=4.0), trial(0.8, 0.0, planned=4.0)

    assert choose([other, one], BUDGET) is one


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (trial(0.5, 1.2), r"loses 1.20 points, 1 allowed"),
        (trial(0.96, 0.0), r"takes 0.96 of fp32's time, 0.98 at most; less than 0.97"),
        (trial(0.5, 0.0, refused="9 dB"), r"9 dB"),
        (trial(0.5, 0.0, ms=31.0), r"31.00 ms at most, 30 allowed"),
    ],
)
def test_what_may_not_ship_says_why(bad: Trial, why: str) -> None:
    budget = Budget(max_drop=1.0, max_latency_ms=30.0)

    assert why in (obstacle(bad, budget) or "")
    assert choose([bad], budget) is None


def test_what_was_not_timed_is_not_too_slow() -> None:
    assert obstacle(trial(0.9, 0.1, time=None, ms=None), Budget(max_drop=1.0, max_latency_ms=1.0)) is None


def test_the_front_is_what_nothing_beats() -> None:
    a, b, c = trial(0.5, 2.0), trial(0.6, 0.5), trial(0.9, -0.1)
    beaten = [trial(0.65, 0.5), trial(0.95, 0.0), trial(0.6, 0.7)]

    assert front([*beaten, c, a, b]) == [a, b, c]


# The repair round


def test_repair_puts_the_worst_quantized_unit_back() -> None:
    damages = [{"a": 0.1, "b": 0.9, "c": 0.5}]
    hurt, mended = trial(0.5, 2.0), trial(0.6, 1.5, "b")

    assert repairs([hurt], BUDGET, damages) == [(0, frozenset({"b"}))]
    assert repairs([hurt, mended], BUDGET, damages) == [(0, frozenset({"b", "c"}))]  # the first was built already


def test_repair_leaves_alone_what_is_sound_or_slow_or_has_no_unit_left() -> None:
    damages = [{"a": 0.1}]

    assert repairs([trial(0.5, 0.1), trial(0.99, 3.0), trial(0.5, 3.0, "a")], BUDGET, damages) == []


def test_repair_of_a_pruned_model_is_of_its_own_units() -> None:
    damages = [{"a": 9.0, "b": 0.1}, {"a": 0.1, "b": 0.2}]

    assert repairs([trial(0.5, 2.0, rung=1)], BUDGET, damages) == [(1, frozenset({"b"}))]


def test_what_the_recipe_refuses_is_repaired_too() -> None:
    assert repairs([trial(0.5, 0.0, refused="9 dB")], BUDGET, [{"a": 1.0}]) == [(0, frozenset({"a"}))]


# What a unit costs and buys


def test_divergence_is_nought_for_the_same_answer_and_grows_with_the_difference() -> None:
    scores = np.array([[2.0, 0.5, -1.0]], np.float32)

    for activation in ("softmax", "sigmoid", "none"):
        near, far = (
            divergence(scores, scores + d * np.array([[1, -1, 0]], np.float32), activation) for d in (0.1, 1.0)
        )
        assert divergence(scores, scores, activation) == 0.0
        assert 0.0 < near < far


def test_divergence_of_what_already_is_a_distribution_is_the_textbooks() -> None:
    p, q = np.array([0.5, 0.5], np.float32), np.array([0.9, 0.1], np.float32)

    assert divergence(p, q, "none") == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-4)


def test_an_output_that_is_not_finite_is_the_worst() -> None:
    assert divergence(np.array([1.0, 0.0]), np.array([np.nan, 0.0]), "softmax") == 1e3


def test_a_gain_is_the_median_and_its_error_shrinks_with_the_rounds() -> None:
    random = np.random.default_rng(1)
    base = random.lognormal(0, 0.05, 400)
    few, many = (gain(list(1.1 * base[:n] * random.lognormal(0, 0.05, n)), list(base[:n])) for n in (20, 400))

    assert many.value == pytest.approx(0.1, abs=0.02)
    assert many.error < few.error / 2


def test_a_machine_that_is_busy_for_a_while_makes_the_error_larger() -> None:
    calm = list(np.random.default_rng(3).lognormal(0, 0.02, 40))
    busy = [*calm[:10], *(3 * v for v in calm[10:20]), *calm[20:]]

    assert gain(busy, [1.0] * 40).error > 20 * gain(calm, [1.0] * 40).error


def test_gains_that_are_noise_are_drawn_to_what_is_expected() -> None:
    random, macs = np.random.default_rng(2), [100] * 20
    noise = [Gain(0.05 + e, 0.04) for e in random.normal(0, 0.04, 20)]

    settled = settle(noise, by_macs(macs, 1.0))

    assert np.std(settled) < 0.5 * np.std([g.value for g in noise])


def test_a_gain_that_stands_out_is_believed() -> None:
    gains = [Gain(0.05, 0.005)] * 9 + [Gain(-0.3, 0.005)]

    settled = settle(gains, [0.05] * 10)

    assert settled[-1] == pytest.approx(-0.3, abs=0.02)
    assert settled[0] == pytest.approx(0.05, abs=0.01)


def test_one_unit_that_was_measured_badly_does_not_drown_the_others() -> None:
    gains = [Gain(0.05, 0.005)] * 8 + [Gain(-0.4, 0.01), Gain(0.9, 3.0)]

    settled = settle(gains, [0.05] * 10)

    assert settled[-2] == pytest.approx(-0.4, abs=0.02)
    assert settled[-1] == pytest.approx(0.05, abs=0.05)


def test_units_without_multiplications_share_alike() -> None:
    assert by_macs([0, 0], 1.0) == [0.5, 0.5]


# A busy machine


def test_only_what_time_alone_can_rule_out_wants_a_quiet_machine() -> None:
    near, far = Ratio(0.9, 0.92, 0.88, 0.2), Ratio(0.4, 0.42, 0.38, 0.2)

    assert undecided(trial(0.9, 0.0, time=near), BUDGET)
    assert undecided(trial(0.4, 0.0, time=far), BUDGET) is None
    assert undecided(trial(0.9, 0.0), BUDGET) is None
    assert undecided(trial(0.9, 5.0, time=near), BUDGET) is None
    assert undecided(trial(0.9, 0.0, time=near, refused="it differs"), BUDGET) is None
    assert undecided(trial(0.9, 0.0, time=None, ms=None), BUDGET) is None


@pytest.mark.parametrize(("ms", "wants"), [(4.9, False), (5.5, True), (7.0, False)])
def test_a_limit_that_is_passed_by_what_a_busy_machine_adds_wants_a_quiet_one(ms: float, *, wants: bool) -> None:
    found = undecided(trial(0.4, 0.0, time=Ratio(0.4, 0.42, 0.38, 0.2), ms=ms), Budget(max_latency_ms=5.0))

    assert bool(found) == wants


def test_a_quiet_machine_always_decides() -> None:
    assert undecided(trial(0.98, 0.0, time=Ratio(0.98, 0.99, 0.97, 0.9)), BUDGET) is None
