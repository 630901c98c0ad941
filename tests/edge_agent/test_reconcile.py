"""From the wish and the record to the next event."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.reconcile import reconcile, see
from skerry.update import Assigned, Chosen, Record, State
from skerry.wire import Desired, Wish

OLD = Chosen("old", "fp32")
SETTLED = Record(active=OLD, good=OLD, seen_version=1)


def wish(release: str, version: int = 2, **more: object) -> Desired:
    return Desired(version=version, apps={"main": Wish(release=release)}, **more)


def test_a_wish_for_another_release_is_an_assignment():
    assert reconcile(wish("new"), SETTLED, "main") == Assigned("new")


def test_a_wish_that_is_met_asks_for_nothing():
    assert reconcile(wish("old"), SETTLED, "main") is None


def test_a_wish_that_is_on_its_way_asks_for_nothing():
    fetching = msgspec.structs.replace(SETTLED, state=State.FETCHING, target="new")
    assert reconcile(wish("new"), fetching, "main") is None
    assert reconcile(wish("newer"), fetching, "main") == Assigned("newer")


def test_a_wish_for_the_release_in_service_calls_an_update_off():
    fetching = msgspec.structs.replace(SETTLED, state=State.FETCHING, target="new")
    assert reconcile(wish("old"), fetching, "main") == Assigned("old")


@pytest.mark.parametrize("record", [SETTLED, msgspec.structs.replace(SETTLED, state=State.SAFE, active=None)])
def test_a_rejected_release_is_not_tried_again(record):
    assert reconcile(wish("bad"), msgspec.structs.replace(record, rejected={"bad": "no"}), "main") is None


def test_a_held_release_waits():
    assert reconcile(wish("new"), SETTLED, "main", held={"new"}) is None


def test_a_device_on_its_way_back_is_not_disturbed():
    assert reconcile(wish("new"), msgspec.structs.replace(SETTLED, state=State.RETURNING), "main") is None


def test_no_wish_and_no_wish_for_this_app_ask_for_nothing():
    assert reconcile(None, SETTLED, "main") is None
    assert reconcile(wish("new"), SETTLED, "another app") is None


def test_an_operator_takes_a_rejection_back_once():
    rejected = msgspec.structs.replace(SETTLED, rejected={"bad": "no", "worse": "never"})
    desired = wish("bad", version=2, cleared=["bad"])
    cleared = see(rejected, desired)
    assert (cleared.rejected, cleared.seen_version) == ({"worse": "never"}, 2)

    rejected_again = msgspec.structs.replace(cleared, rejected={"bad": "still no"})
    assert see(rejected_again, desired) == rejected_again, "the same wish does not clear it again"


def test_an_older_wish_is_not_looked_at():
    assert see(msgspec.structs.replace(SETTLED, seen_version=5), wish("x", version=4)).seen_version == 5
