"""A rollout's table: complete, drawn in the docs, and never a way to a device that it was not meant for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts import state as rollouts
from cloud_hub.rollouts.state import (
    CLOCKED,
    TRANSITIONS,
    Aborted,
    AllBack,
    Finished,
    Harmed,
    Paused,
    Resumed,
    Rollout,
    Started,
    State,
    ToldBack,
    Undecided,
    WavePassed,
    advance,
    offered,
    step,
    wishes,
)
from skerry.errors import IllegalTransition

PAGE = Path(__file__).parents[2] / "docs" / "rollouts.md"
OLD, NEW = "0" * 64, "1" * 64
EVENTS = [
    Started("ann"),
    WavePassed("3 of 3"),
    Finished("3 of 3"),
    Undecided("2 silent"),
    Paused("ann"),
    Resumed("ann"),
    Harmed("a: refused"),
    ToldBack("ann"),
    AllBack("3 of 3"),
    Aborted("ann"),
]


def draft(**changed):
    waves = (("a",), ("b", "c"), ("d",))
    before = dict.fromkeys("abc", OLD) | {"d": None}
    return Rollout(
        **{"id": "7", "app": "main", "release": NEW, "waves": waves, "before": before, "clock_s": 60, **changed}
    )


def after(*events):
    rollout = draft()
    for number, event in enumerate(events, 1):
        rollout = advance(rollout, event, 1000 * number)
    return rollout


def test_the_table_knows_every_state_and_every_event():
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(State)
    assert {event for _, event in TRANSITIONS} == {type(event) for event in EVENTS}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_pair_steps_or_says_that_it_may_not(state, event):
    if (state, type(event)) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, type(event)]
    else:
        with pytest.raises(IllegalTransition, match=f"{type(event).__name__} in a rollout that is {state.value}"):
            step(state, event)


def test_what_is_over_stays_over_but_for_a_person_who_takes_it_back():
    for state in (State.TAKEN_BACK, State.ABORTED):
        assert not any(before is state for before, _ in TRANSITIONS)
    assert [event for before, event in TRANSITIONS if before is State.DONE] == [ToldBack]


def test_from_every_state_there_is_a_way_to_an_end():
    reach = {State.DONE, State.TAKEN_BACK, State.ABORTED}
    for _ in State:
        reach |= {before for (before, _), to in TRANSITIONS.items() if to in reach}
    assert reach == set(State)


def test_waves_open_one_after_the_other():
    assert offered(draft()) == ()
    assert offered(after(Started("ann"))) == ("a",)
    assert offered(after(Started("ann"), WavePassed(""))) == ("a", "b", "c")
    rollout = after(Started("ann"), WavePassed(""), WavePassed(""))
    assert rollout.is_last_wave
    with pytest.raises(IllegalTransition, match="behind the last wave"):
        advance(rollout, WavePassed(""), 0)
    assert advance(rollout, Finished(""), 0).state is State.DONE


def test_a_clock_runs_where_something_must_happen_and_begins_anew_with_each_step():
    running = after(Started("ann"))
    assert (running.since_ms, running.due_ms) == (1000, 61_000)
    asking = advance(running, Undecided("b"), 61_000)
    assert asking.due_ms is None
    assert advance(asking, Resumed("ann"), 90_000).due_ms == 150_000
    assert {state for state in State if state in CLOCKED} == {State.RUNNING, State.TAKING_BACK}


def test_taking_back_names_what_each_device_ran_before():
    back = after(Started("ann"), WavePassed(""), Harmed("b: refused"))
    assert wishes(back) == {"a": OLD, "b": OLD, "c": OLD}
    assert wishes(advance(back, AllBack(""), 9000)) == wishes(back)  # the wish stands for whoever comes late


def test_a_pause_leaves_who_has_it_with_it_and_opens_nothing():
    paused = after(Started("ann"), Paused("ann"))
    assert wishes(paused) == {"a": NEW}
    assert wishes(advance(paused, Aborted("ann"), 9000)) == {"a": NEW}
    assert wishes(after(Aborted("ann"))) == {}


LIVES = st.lists(st.sampled_from(EVENTS), max_size=30)


@given(LIVES)
def test_whatever_happens_no_device_is_told_to_run_what_it_was_not_meant_to(events):
    rollout, told = draft(), set()
    for number, event in enumerate(events, 1):
        before = rollout
        try:
            rollout = advance(rollout, event, 1000 * number)
        except IllegalTransition:
            assert rollout is before
            continue
        assert rollout.step == before.step + 1
        assert rollout.wave - before.wave == isinstance(event, (Started, WavePassed))
        assert set(offered(rollout)) >= told  # who was told once is answered for until the end
        told = set(offered(rollout))
        for device, release in wishes(rollout).items():
            back = rollout.state in (State.TAKING_BACK, State.TAKEN_BACK)
            assert release == (rollout.before[device] if back else NEW)
    assert State.DRAFT is rollout.state or rollout.step > 0


def test_the_page_shows_the_table():
    assert f"```mermaid\n{rollouts.diagram()}\n```" in PAGE.read_text()
