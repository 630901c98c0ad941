"""The tracker: a thing keeps its number through noise, gaps and uneven frames, and no flicker ever gets one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import needs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.config import TrackingConfig
from edge_agent.rules.assignment import pairs
from edge_agent.rules.tracker import Box, Tracker


def tracker(**fields) -> Tracker:
    return Tracker(TrackingConfig(**fields), itertools.count(1).__next__)


def box(x: float, y: float = 0.5, label: str = "person", score: float = 0.9, size: float = 0.1) -> Box:
    """Its middle is at (x, y)."""
    return Box(label, score, (x - size / 2, y - size, x + size / 2, y + size))


def test_a_thing_has_a_number_from_the_second_frame_that_shows_it_and_a_flicker_has_none():
    rule = tracker()
    assert rule.update(0.0, [box(0.2), box(0.8)]) == [None, None]
    assert rule.update(0.1, [box(0.21)]) == [1]
    assert rule.update(0.2, [box(0.22), box(0.8)]) == [1, None]
    assert rule.numbers == {1}


def test_two_that_pass_each_other_keep_their_numbers():
    rule, rng = tracker(), np.random.default_rng(0)
    seen = []
    for n in range(40):
        a, b = 0.1 + n * 0.02, 0.9 - n * 0.02
        tremble = rng.normal(0, 0.002, 2)
        seen.append(rule.update(n / 10, [box(a + tremble[0], 0.45), box(b + tremble[1], 0.55)]))
    assert seen[1:] == [[1, 2]] * 39


@pytest.mark.parametrize("steps", [[0.04], [0.4], [0.02, 0.3, 0.05]])
def test_it_follows_over_frames_that_are_near_far_and_uneven(steps):
    rule, now, seen = tracker(), 0.0, []
    for pause in itertools.islice(itertools.cycle(steps), 30):
        seen += rule.update(now, [box(0.1 + 0.1 * now)])
        now += pause
    assert seen == [None] + [1] * 29


def test_what_moves_by_its_own_size_and_more_between_two_frames_is_followed():
    rule = tracker()
    seen = [rule.update(n / 10, [box(0.1 + 0.12 * n)])[0] for n in range(7)]
    assert seen == [None] + [1] * 6


def test_a_thing_is_out_of_sight_for_less_than_lost_s_or_it_is_another():
    rule = tracker(lost_s=1.0)
    for n in range(10):
        rule.update(n / 10, [box(0.3)])
    for n in range(10, 19):
        rule.update(n / 10, [])
    assert rule.update(1.9, [box(0.3)]) == [1]
    for n in range(20, 31):
        rule.update(n / 10, [])
    assert rule.numbers == set()
    assert rule.update(3.1, [box(0.3)]) == [None]
    assert rule.update(3.2, [box(0.3)]) == [2]


def test_a_camera_that_was_away_comes_back_to_what_it_left_unless_it_was_away_for_long():
    rule = tracker(lost_s=1.0, blind_s=30.0)
    for now in (0.0, 0.1, 20.0):
        seen = rule.update(now, [box(0.3), box(0.7)])
    assert seen == [1, 2]
    assert rule.update(50.0, [box(0.3), box(0.7)]) == [None, None]
    assert rule.numbers == set()


def test_a_thing_is_followed_below_the_score_that_it_begins_with():
    rule = tracker(start_score=0.5, keep_score=0.1)
    seen = [rule.update(n / 10, [box(0.3, score=score)])[0] for n, score in enumerate((0.4, 0.6, 0.6, 0.2, 0.11, 0.05))]
    assert seen == [None, None, 1, 1, 1, None]


def test_what_a_thing_is_goes_by_votes():
    rule = tracker()
    for n, label in enumerate(["car", "car", "car", "truck", "car", "car"]):
        seen = rule.update(n / 10, [box(0.3, label=label)])
        assert seen == [None if n == 0 else 1]
    assert rule.label(1) == "car"
    for n in range(6, 20):
        rule.update(n / 10, [box(0.3, label="vehicle")])
    assert rule.label(1) == "vehicle", "another model calls it otherwise"
    assert rule.numbers == {1}


def test_a_rider_and_a_bicycle_do_not_take_each_others_numbers():
    rule = tracker()
    both = [box(0.3, 0.5, "person"), box(0.3, 0.56, "bicycle")]
    rule.update(0.0, both)
    assert rule.update(0.1, both) == [1, 2]
    assert rule.update(0.2, both[1:]) == [2]
    assert rule.update(0.3, both[::-1]) == [2, 1]


def test_boxes_that_are_none_do_no_harm():
    rule = tracker()
    odd = [Box("a", 0.9, (0.5, 0.5, 0.5, 0.5)), Box("b", 0.9, (0.6, 0.6, 0.2, 0.2))]
    for n in range(4):
        assert rule.update(n / 10, [*odd, box(0.3)])[:2] == [None, None]
    assert rule.numbers == {1}


@given(st.lists(st.tuples(st.floats(0.0, 40.0), st.lists(st.floats(0.0, 1.0), max_size=5)), max_size=30))
def test_no_number_is_given_twice_in_a_frame_or_again_after_its_end(frames):
    rule, now, ended, before = tracker(), 0.0, set(), set()
    for pause, places in frames:
        now += pause
        given_out = [n for n in rule.update(now, [box(x) for x in places]) if n is not None]
        assert len(set(given_out)) == len(given_out)
        ended |= before - rule.numbers
        assert set(given_out) <= rule.numbers
        assert not rule.numbers & ended
        before = rule.numbers


WEIGHTS = arrays(
    np.float64,
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    elements=st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
)


@given(WEIGHTS)
def test_the_pairing_is_the_best_of_all(weights):
    found = pairs(weights)
    assert len({r for r, _ in found}) == len({c for _, c in found}) == len(found)
    assert all(weights[pair] > 0 for pair in found)
    assert sum(weights[pair] for pair in found) == pytest.approx(best(weights), abs=1e-9)


def best(weights: np.ndarray) -> float:
    """By trying them all."""
    rows, columns = weights.shape
    if rows > columns:
        weights, (rows, columns) = weights.T, (columns, rows)
    ways = itertools.permutations(range(columns), rows)
    return max((sum(weights[r, c] for r, c in enumerate(way)) for way in ways), default=0.0)


@pytest.mark.slow
def test_people_in_real_streets_keep_their_numbers():
    """The bars of benchmarks/tracking.py: at 25, 8 and 4 frames a second."""
    needs.asset("tracks/TUD-Campus/gt.txt")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tracking"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
