"""The update cycle, as values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from skerry.errors import IllegalTransition
from skerry.update import (
    MAX_REJECTED,
    PROBATION_BOOTS,
    PROOF_ATTEMPTS,
    TRANSITIONS,
    Assigned,
    Chosen,
    Failed,
    Fetched,
    Kept,
    Proved,
    Record,
    Refused,
    Returned,
    State,
    Switched,
    advance,
    diagram,
    resume,
    step,
)

OLD, NEW = Chosen("old", "fp32"), Chosen("new", "int8")
EVENTS = [Assigned("new"), Fetched(), Proved("int8"), Refused("why"), Switched(), Kept(), Failed("why"), Returned(OLD)]
SETTLED = Record(active=OLD, good=OLD, boot="a boot", run="a run")


def along(record: Record, *events: object) -> Record:
    for event in events:
        record = advance(record, event)
    return record


ON_PROBATION = along(SETTLED, Assigned("new"), Fetched(), Proved("int8"), Switched())


def every_record() -> Iterator[Record]:
    """Each state, with and without what may be there in it."""
    numbers = (0, 1, 2, 3, 4)
    for state, attempt, boots, exits, clean in itertools.product(State, numbers, numbers, (0, 1, 2), (True, False)):
        for active, good in ((None, None), (OLD, OLD), (NEW, OLD), (NEW, None)):
            yield Record(
                state=state, target="new", variant="int8", active=active, good=good, attempt=attempt, boots=boots,
                exits=exits, clean_stop=clean, boot="a boot", run="a run",
            )  # fmt: skip


def test_an_update_that_goes_well_is_kept():
    assert ON_PROBATION.state is State.PROBATION
    assert ON_PROBATION.active == NEW
    assert ON_PROBATION.good == OLD, "until it is kept, the device returns to the old one"

    kept = advance(ON_PROBATION, Kept())
    assert (kept.state, kept.active, kept.good, kept.previous, kept.target) == (State.IDLE, NEW, NEW, OLD, None)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_a_pair_that_the_table_does_not_know_is_refused(state, event):
    if (state, type(event)) in TRANSITIONS:
        assert step(state, event) is TRANSITIONS[state, type(event)]
    else:
        with pytest.raises(IllegalTransition, match=f"{type(event).__name__} in state {state.value}"):
            step(state, event)


def test_every_state_can_be_entered_and_left():
    assert set(TRANSITIONS.values()) == set(State)
    assert {a for a, _ in TRANSITIONS} == set(State)


def test_a_refused_release_is_remembered_with_the_reason():
    refused = along(SETTLED, Assigned("new"), Fetched(), Refused("its answers differ"))
    assert refused.rejected == {"new": "its answers differ"}
    assert (refused.state, refused.active, refused.target) == (State.IDLE, OLD, None)


def test_a_failed_probation_returns_to_what_was_kept_and_rejects():
    back = along(ON_PROBATION, Failed("too slow", verdict=True), Returned(OLD))
    assert (back.state, back.active, back.good) == (State.IDLE, OLD, OLD)
    assert back.rejected == {"new": "too slow"}


def test_a_full_disk_says_nothing_about_a_release():
    failed = along(SETTLED, Assigned("new"), Failed("the disk is full"))
    assert (failed.state, failed.rejected, failed.target) == (State.IDLE, {}, None)


def test_a_new_wish_during_a_probation_takes_it_back_without_a_verdict():
    back = along(ON_PROBATION, Assigned("newer"), Returned(OLD))
    assert (back.active, back.rejected) == (OLD, {})


def test_when_nothing_is_left_to_return_to_the_device_is_safe():
    first = along(Record(), Assigned("new"), Fetched(), Proved("int8"), Switched(), Failed("crashes", verdict=True))
    safe = advance(first, Failed("no release was kept before"))
    assert (safe.state, safe.active, safe.target) == (State.SAFE, None, None)
    assert advance(safe, Assigned("newer")).state is State.FETCHING


def test_a_release_in_service_that_does_not_load_any_more_gives_way_to_the_one_before():
    record = msgspec.structs.replace(SETTLED, active=NEW, good=NEW, previous=OLD)
    back = along(record, Failed("its file is damaged"), Returned(OLD))
    assert (back.active, back.good, back.previous) == (OLD, OLD, None)
    assert back.rejected == {}, "a damaged disk says nothing about the release"


def test_only_so_many_rejections_are_remembered_the_newest_last():
    record = SETTLED
    for number in range(MAX_REJECTED + 5):
        record = along(record, Assigned(f"bad{number}"), Fetched(), Refused("no"))
    assert len(record.rejected) == MAX_REJECTED
    assert list(record.rejected)[-1] == f"bad{MAX_REJECTED + 4}"


def test_kept_releases_stay_on_disk_and_so_does_the_target():
    assert ON_PROBATION.in_use() == {"old", "new"}
    assert advance(ON_PROBATION, Kept()).in_use() == {"old", "new"}


# Resuming


@pytest.mark.parametrize("boot", ["a boot", "another boot"])
def test_every_record_has_a_place_to_go_on(boot):
    for record in every_record():
        resumed = resume(record, boot=boot, run="another run")
        assert resumed.state in State
        assert (resumed.boot, resumed.run, resumed.clean_stop) == (boot, "another run", False)


@pytest.mark.parametrize("boot", ["a boot", "another boot"])
def test_resuming_never_makes_a_rejected_release_active(boot):
    for record in every_record():
        if record.active == NEW and record.state not in (State.PROBATION, State.RETURNING):
            continue  # a target is never active before its probation
        resumed = resume(record, boot=boot, run="another run")
        in_service = resumed.active if resumed.state not in (State.RETURNING, State.SAFE) else None
        assert in_service is None or in_service.release not in resumed.rejected


def test_a_proof_is_tried_again_after_an_unclean_end_and_then_refused():
    proving = along(SETTLED, Assigned("new"), Fetched())
    for _ in range(PROOF_ATTEMPTS - 1):
        proving = resume(proving, boot="a boot", run="r")
        assert proving.state is State.PROVING
    refused = resume(proving, boot="a boot", run="r")
    assert refused.state is State.IDLE
    assert "did not end" in refused.rejected["new"]


def test_a_clean_stop_during_a_proof_costs_no_attempt():
    proving = msgspec.structs.replace(along(SETTLED, Assigned("new"), Fetched()), clean_stop=True)
    assert resume(proving, boot="a boot", run="r").attempt == proving.attempt


def test_a_probation_survives_one_crash_and_not_a_second_in_the_same_boot():
    once = resume(ON_PROBATION, boot="a boot", run="r")
    assert once.state is State.PROBATION
    twice = resume(once, boot="a boot", run="r")
    assert twice.state is State.RETURNING
    assert "crashed 2 times" in twice.rejected["new"]


def test_a_power_cut_forgives_the_crash_before_it():
    crashed = resume(ON_PROBATION, boot="a boot", run="r")
    cut = resume(crashed, boot="another boot", run="r")
    assert (cut.state, cut.exits, cut.boots) == (State.PROBATION, 0, 1)


def test_a_shop_that_cuts_power_at_night_keeps_its_good_releases():
    record = ON_PROBATION
    for night in range(PROBATION_BOOTS):
        record = resume(record, boot=f"night {night}", run="r")
        assert record.state is State.PROBATION
    given_up = resume(record, boot="one night more", run="r")
    assert given_up.state is State.RETURNING
    assert given_up.rejected == {}, "lost power says nothing about a release"


def test_any_number_of_clean_stops_leaves_a_probation_alone():
    record = ON_PROBATION
    for _ in range(10):
        record = resume(msgspec.structs.replace(record, clean_stop=True), boot="a boot", run="r")
    assert record.state is State.PROBATION


def test_a_record_survives_its_trip_to_the_disk():
    for record in every_record():
        assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def test_the_documented_diagram_is_the_table():
    text = (Path(__file__).parents[2] / "docs" / "update-cycle.md").read_text()
    assert diagram() in text, "docs/update-cycle.md: replace its diagram by skerry.update.diagram()"
