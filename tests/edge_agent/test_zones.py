"""Zones: entered less left is what is inside, whatever flickers, and nothing is told below the debounce."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from moving import stamp, thing

from edge_agent.config import ZoneConfig
from edge_agent.rules.scene import within
from edge_agent.rules.zones import Zone
from skerry.wire import Dwelt, Entered, Left

YARD = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
IN, OUT = (0.5, 0.5), (0.9, 0.9)


def zone(**fields) -> Zone:
    return Zone(ZoneConfig(**{"name": "yard", "polygon": YARD, "enter_s": 0.5, "leave_s": 0.5, **fields}))


def play(rule: Zone, frames, alive=(1,)):
    """Frames of (time, place of track 1 or None where it is out of sight); what they told."""
    told = []
    for time_s, place in frames:
        told += rule.update(time_s, [thing(*place)] if place else [], alive, stamp(time_s))
    return told


def kinds(told) -> list[str]:
    return [type(event).__name__ for event in told]


def test_a_visit_is_entered_dwelt_and_left_once_with_its_times():
    told = play(zone(dwell_s=2.0), [(n / 10, IN if 10 <= n <= 50 else OUT) for n in range(80)])
    assert kinds(told) == ["Entered", "Dwelt", "Left"]
    assert [event.mono_ms for event in told] == [1500, 3000, 5600]
    assert told[1].inside_ms == 2000
    assert (told[2].inside_ms, told[2].inside, told[2].why) == (4000, 0, "outside")


def test_one_that_flickers_in_for_less_than_enter_s_is_never_told():
    assert play(zone(), [(n / 10, IN if n % 5 else OUT) for n in range(100)]) == []


def test_one_that_wavers_at_the_edge_neither_leaves_nor_dwells_again():
    told = play(zone(dwell_s=1.0), [(n / 10, IN if n < 10 or n % 4 else OUT) for n in range(200)])
    assert kinds(told) == ["Entered", "Dwelt"]


def test_one_that_is_out_of_sight_is_still_inside_until_its_track_ends():
    rule = zone()
    play(rule, [(0.0, IN), (0.6, IN), (1.0, None), (9.0, None)])
    assert rule.inside == 1
    (left,) = rule.update(10.0, [], (), stamp(10.0))
    assert (left.why, left.inside_ms, left.inside) == ("out of sight", 600, 0)


def test_what_does_not_count_is_not_told_but_what_has_entered_leaves_whatever_it_is_called():
    rule = zone(labels=["person"], min_score=0.6, enter_s=0.0)
    assert list(rule.update(0.0, [thing(*IN, label="dog"), thing(*IN, track=2, best=0.5)], (1, 2), stamp())) == []
    assert kinds(rule.update(1.0, [thing(*IN)], (1, 2), stamp())) == ["Entered"]
    assert list(rule.update(2.0, [thing(*IN, label="dog")], (1, 2), stamp())) == []
    rule.update(3.0, [thing(*OUT, label="dog")], (1, 2), stamp())
    told = play(rule, [(3.0, OUT), (4.0, OUT)])
    assert kinds(told) == ["Left"]


def test_a_zone_that_is_changed_lets_everybody_go():
    rule = zone(enter_s=0.0)
    list(rule.update(0.0, [thing(*IN, track=n) for n in (3, 1, 2)], (1, 2, 3), stamp()))
    told = list(rule.close(stamp()))
    assert [(event.track, event.inside, event.why) for event in told] == [
        (1, 2, "no longer watched"),
        (2, 1, "no longer watched"),
        (3, 0, "no longer watched"),
    ]


def test_a_hollow_polygon_is_out_where_it_is_hollow():
    horseshoe = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.7, 1.0), (0.7, 0.3), (0.3, 0.3), (0.3, 1.0), (0.0, 1.0)]
    assert within((0.1, 0.9), horseshoe)
    assert within((0.9, 0.9), horseshoe)
    assert not within((0.5, 0.9), horseshoe)


WALKS = st.lists(
    st.tuples(
        st.floats(0.01, 0.7),  # until the next frame
        st.dictionaries(st.integers(1, 4), st.sampled_from([IN, OUT, None]), max_size=4),  # None: in being, unseen
    ),
    max_size=60,
)


@given(WALKS, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.one_of(st.none(), st.floats(0.1, 3.0)))
def test_entered_less_left_is_inside_and_each_stay_is_told_in_order(frames, enter_s, leave_s, dwell_s):
    rule, now, told, first_in = zone(enter_s=enter_s, leave_s=leave_s, dwell_s=dwell_s), 0.0, [], {}
    for pause, places in frames:
        now += pause
        seen = [thing(*place, track=track) for track, place in places.items() if place]
        for track in list(first_in):
            if track not in places or places[track] is OUT:
                del first_in[track]
        first_in.update({t: first_in.get(t, now) for t, place in places.items() if place is IN})
        for event in rule.update(now, seen, places.keys(), stamp(now)):
            told.append(event)
            if isinstance(event, Entered):
                assert now - first_in[event.track] >= enter_s, "told below the debounce"
            if not isinstance(event, Dwelt):
                assert event.inside == balance(told), "the count is not what was told"
        assert rule.inside == balance(told)
    for track in {event.track for event in told}:
        stays = "".join({Entered: "E", Dwelt: "D", Left: "L"}[type(e)] for e in told if e.track == track)
        assert stays.replace("D", "") in ("EL" * (len(stays) // 2 + 1))[: len(stays.replace("D", ""))]
        assert "DD" not in stays
        assert not stays.startswith(("D", "L"))
        assert "LD" not in stays


def balance(told) -> int:
    return sum(isinstance(event, Entered) for event in told) - sum(isinstance(event, Left) for event in told)
