"""Every accepted event is taken once, whatever is sent again, comes late, or was lost on the device."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.intake import Intake, take_in
from skerry.messages import Batch


def batch(first, count=3, lost=0):
    events = [msgspec.Raw(b"%d" % number) for number in range(first, first + count)]
    return Batch(stream="s", first_seq=first, lost=lost, events=events)


@pytest.mark.parametrize(
    ("last", "came", "expected"),
    [
        (0, batch(1), Intake(skip=0, take=3, lost=0, last=3)),
        (3, batch(4), Intake(skip=0, take=3, lost=0, last=6)),
        (3, batch(1), Intake(skip=3, take=0, lost=0, last=3)),  # again: acked again
        (2, batch(1), Intake(skip=2, take=1, lost=0, last=3)),
        (3, batch(8), Intake(skip=0, take=0, lost=0, last=3)),  # ahead: told where to go on
        (3, batch(8, lost=4), Intake(skip=0, take=3, lost=4, last=10)),
        (5, batch(8, lost=4), Intake(skip=0, take=3, lost=2, last=10)),  # some of the lost ones are here
        (3, batch(8, lost=3), Intake(skip=0, take=0, lost=0, last=3)),  # a hole that the loss does not explain
        (9, batch(8, lost=4), Intake(skip=2, take=1, lost=0, last=10)),
    ],
)
def test_what_is_new(last, came, expected):
    assert take_in(last, came) == expected


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 10), st.integers(0, 30))
def test_the_sum_is_exact_and_the_last_number_never_falls(last, first, count, lost):
    came = batch(first, count, min(lost, first - 1))
    found = take_in(last, came)
    assert found.last >= last
    assert found.last - last == found.take + found.lost
    assert found.skip + found.take in (0, count)


@given(st.data())
def test_a_bad_network_and_a_full_outbox_lose_nothing_that_is_not_said(data):
    """The device sends from wherever the last ack that reached it was; batches are doubled, delayed and dropped."""
    accepted, evicted, acked, last = data.draw(st.integers(1, 40)), 0, 0, 0
    taken, lost, late = [], 0, []
    for _ in range(60):
        evicted = max(evicted, acked, data.draw(st.integers(0, min(accepted, evicted + 3))))
        begin = max(acked, evicted) + 1
        if begin <= accepted:
            count = data.draw(st.integers(1, min(5, accepted - begin + 1)))
            late.append(batch(begin, count, begin - 1 - acked))
        if late and data.draw(st.booleans()):
            came = late[data.draw(st.integers(0, len(late) - 1))]
            found = take_in(last, came)
            taken += range(came.first_seq + found.skip, came.first_seq + found.skip + found.take)
            lost, last = lost + found.lost, found.last
            if data.draw(st.booleans()):
                acked = max(acked, last)
    assert taken == sorted(set(taken))
    assert len(taken) + lost == last
