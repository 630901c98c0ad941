"""Waves: who is in which, from the sizes that a person gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts.plan import plan
from skerry.errors import UsageError


@pytest.mark.parametrize(
    ("count", "canary", "waves", "sizes"),
    [
        (3, "1", ["50%", "100%"], [1, 1, 1]),
        (10, "1", ["25%", "50%", "100%"], [1, 2, 2, 5]),
        (200, "1%", ["10%", "100%"], [2, 18, 180]),
        (2, "5", ["100%"], [2]),
        (4, "0", ["100%"], [4]),
        (10, "1", ["3", "50%"], [1, 2, 2]),  # and no further: the rest was not asked for
        (1, "10%", ["100%"], [1]),
    ],
)
def test_sizes_are_counts_or_shares_of_all(count, canary, waves, sizes):
    assert [len(wave) for wave in plan([str(n) for n in range(count)], canary, waves)] == sizes


@given(st.integers(1, 300), st.integers(0, 300), st.lists(st.integers(0, 100), max_size=6))
def test_every_device_is_in_one_wave_at_most_in_order(count, canary, shares):
    devices = [str(n) for n in range(count)]
    try:
        waves = plan(devices, str(canary), [f"{share}%" for share in sorted(shares)])
    except UsageError:
        return  # the canary is larger than the first wave
    flat = [device for wave in waves for device in wave]
    assert flat == devices[: len(flat)]
    assert all(waves)


@pytest.mark.parametrize(
    ("canary", "waves", "says"),
    [
        ("many", ["100%"], "no size"),
        ("1.5", ["100%"], "no size"),
        ("-1", ["100%"], "out of range"),
        ("1", ["150%"], "out of range"),
        ("1", ["nan%"], "out of range"),
        ("1", ["50%", "20%"], "must rise"),
    ],
)
def test_sizes_that_are_none_are_refused(canary, waves, says):
    with pytest.raises(UsageError, match=says):
        plan([str(n) for n in range(10)], canary, waves)
