"""Lines: each real crossing counts once, and nothing else does."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st
from moving import stamp, thing

from edge_agent.config import LineConfig
from edge_agent.rules.lines import Line
from edge_agent.rules.scene import beyond, passes

DOOR = {"name": "door", "begin": (0.5, 0.2), "end": (0.5, 0.8)}


def line(**fields) -> Line:
    return Line(LineConfig(**{**DOOR, "settle_s": 0.2, **fields}))


def walk(rule: Line, places, track: int = 1, start_s: float = 0.0):
    """Ten frames a second."""
    told = []
    for n, place in enumerate(places):
        now = start_s + n / 10
        told += rule.update(now, [thing(*place, track=track)] if place else [], (track,), stamp(now, n))
    return told


def along(*xs: float, y: float = 0.5) -> list[tuple[float, float]]:
    return [(x, y) for x in xs]


def test_a_crossing_counts_once_in_its_direction_and_so_does_the_way_back():
    rule = line()
    told = walk(rule, along(0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2))
    assert [(e.direction, e.forward, e.backward) for e in told] == [("forward", 1, 0), ("backward", 1, 1)]
    assert [e.frame for e in told] == [4, 9], "when it has stayed on the other side for settle_s"


def test_one_that_trembles_on_the_line_does_not_cross_it():
    trembling = [0.5 + 0.011 * (-1) ** n for n in range(200)]
    assert walk(line(), along(0.3, *trembling, 0.3, 0.3, 0.3)) == []
    told = walk(line(), along(0.3, *trembling, 0.7, 0.7, 0.7, 0.7))
    assert [e.direction for e in told] == ["forward"]


def test_a_box_that_jumps_over_for_a_moment_does_not_cross():
    assert walk(line(), along(0.4, 0.4, 0.6, 0.4, 0.4, 0.6, 0.4, 0.4)) == []


def test_one_that_goes_around_the_end_does_not_cross():
    around = [(0.4, 0.9), (0.45, 0.9), (0.6, 0.9), (0.7, 0.9), (0.7, 0.5), (0.7, 0.5), (0.7, 0.5)]
    assert walk(line(), around) == []


def test_one_that_is_first_seen_on_the_line_has_no_side_to_have_come_from():
    assert walk(line(), along(0.5, 0.52, 0.6, 0.7, 0.7, 0.7)) == []


def test_one_that_goes_over_while_it_is_out_of_sight_counts_once():
    rule = line()
    told = walk(rule, [(0.4, 0.5), (0.4, 0.5), None, None, None, (0.6, 0.5), (0.6, 0.5), (0.6, 0.5), (0.6, 0.5)])
    assert [e.direction for e in told] == ["forward"]


def test_a_track_that_ends_and_another_that_begins_beyond_the_line_count_for_nothing():
    rule = line()
    told = walk(rule, along(0.3, 0.35, 0.4)) + walk(rule, along(0.6, 0.65, 0.7, 0.75), track=2, start_s=1.0)
    assert told == []


def test_only_what_is_wanted_counts():
    rule = line(labels=["person"], min_score=0.6)
    for now, x in ((0.0, 0.3), (0.1, 0.7), (0.4, 0.7)):
        things = [thing(x, 0.5, label="dog"), thing(x, 0.5, track=2, best=0.5), thing(x, 0.5, track=3)]
        told = list(rule.update(now, things, (1, 2, 3), stamp(now)))
    assert [e.track for e in told] == [3]
    assert (rule.forward, rule.backward) == (1, 0)


def test_a_line_from_bottom_to_top_has_its_directions_turned():
    told = walk(line(begin=DOOR["end"], end=DOOR["begin"]), along(0.3, 0.7, 0.7, 0.7, 0.7))
    assert [e.direction for e in told] == ["backward"]


PLACES = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0))


@given(st.lists(PLACES, min_size=2, max_size=30))
def test_the_steps_of_a_way_add_up_to_the_way(places):
    """Over a line without ends, as the signs of a function: what trembles cancels out."""
    begin, end = (0.5, -1e6), (0.5, 1e6)
    steps = sum(passes(a, b, begin, end) for a, b in pairwise(places))
    assert steps == (beyond(places[-1], begin, end) >= 0) - (beyond(places[0], begin, end) >= 0)


@given(
    st.lists(st.sampled_from([0.2, 0.8]), min_size=1, max_size=8),
    st.lists(st.floats(-0.012, 0.012), min_size=60, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_each_real_crossing_counts_once_whatever_trembles_and_flickers(sides, noise, seen):
    """A thing walks from side to side, stands there, trembles by a quarter of its size and is out of sight at times."""
    rule, told, now, n = line(), [], 0.0, 0
    for before, after in pairwise(sides):
        for share in (0.0, 0.2, 0.4, 0.48, 0.52, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0):
            x, now, n = before + share * (after - before) + noise[n % 60], now + 0.1, n + 1
            standing = share in (0.0, 1.0)  # where it stands, it is seen
            shown = [thing(x, 0.5)] if standing or seen[n % 60] else []
            told += rule.update(now, shown, (1,), stamp(now, n))
    real = [("forward" if b > a else "backward") for a, b in pairwise(sides) if a != b]
    assert [e.direction for e in told] == real
    assert (rule.forward, rule.backward) == (real.count("forward"), real.count("backward"))


@given(st.lists(PLACES, max_size=40), st.floats(0.0, 0.5))
def test_whatever_happens_directions_take_turns_and_the_counts_are_what_was_told(places, settle_s):
    rule = line(settle_s=settle_s)
    told = [e.direction for e in walk(rule, places)]
    assert (rule.forward, rule.backward) == (told.count("forward"), told.count("backward"))
    assume(all(0.2 < y < 0.8 for _, y in places))
    assert all(a != b for a, b in pairwise(told))
