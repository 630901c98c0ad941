"""The judge of a wave: goes on only on what was measured, takes back only on harm, and asks when the clock ran out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.rollouts.judge import (
    Ask,
    DeviceEvidence,
    GoOn,
    Policy,
    Standing,
    TakeBack,
    Wait,
    judge,
    standing,
)

POLICY = Policy(soak_s=600, max_harmed=0, min_share=0.75, offline_after_s=900)

GOOD = DeviceEvidence("good", heard_s=5, took_it=True, active=True, proved=True, kept=True, soaked_s=700)
BUSY = DeviceEvidence("busy", heard_s=5, took_it=True)
SILENT = DeviceEvidence("silent", heard_s=5000, took_it=True, active=True, proved=True)
ABSENT = DeviceEvidence("absent", heard_s=5000)
HARMED = DeviceEvidence("harmed", heard_s=5, took_it=True, harm="its proof: 3 of 16 agree, 90% wanted")


def wave(*kinds, clock_ran_out=False, policy=POLICY, before=()):
    """The verdict on a wave of such devices, behind earlier waves of others."""
    found = {f"d{n}": replace(kind, device=f"d{n}") for n, kind in enumerate((*before, *kinds))}
    names = list(found)
    waves = [names[: len(before)], names[len(before) :]] if before else [names]
    return judge(waves, found, policy, clock_ran_out=clock_ran_out)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (GOOD, Standing.PASSED),
        (replace(GOOD, heard_s=5000), Standing.PASSED),  # it said so, and stays right
        (replace(GOOD, soaked_s=599), Standing.WAITING),
        (replace(GOOD, kept=False), Standing.WAITING),
        (replace(GOOD, proved=False), Standing.WAITING),  # active and never proved: not believed
        (replace(GOOD, active=False), Standing.WAITING),
        (replace(GOOD, harm="returned: too slow"), Standing.HARMED),
        (BUSY, Standing.WAITING),
        (SILENT, Standing.SILENT),
        (ABSENT, Standing.ABSENT),
        (DeviceEvidence("new"), Standing.ABSENT),
    ],
)
def test_how_a_device_stands(evidence, expected):
    assert standing(evidence, POLICY) is expected


def test_a_wave_that_has_shown_it_goes_on_with_its_numbers():
    assert wave(GOOD, GOOD, GOOD) == GoOn("of 3 devices 3 passed")


def test_one_that_is_on_its_way_is_waited_for_until_the_clock_runs_out():
    assert isinstance(wave(GOOD, GOOD, GOOD, BUSY), Wait)
    verdict = wave(GOOD, GOOD, GOOD, BUSY, clock_ran_out=True)
    assert verdict == Ask("of 4 devices 3 passed, 1 on its way; 3 of the wave's 4 must pass, 3 did; not decided: d3")


def test_an_absent_device_neither_blocks_a_wave_nor_passes_it():
    assert isinstance(wave(GOOD, GOOD, GOOD, ABSENT), Wait)
    assert isinstance(wave(GOOD, GOOD, GOOD, ABSENT, clock_ran_out=True), GoOn)
    assert isinstance(wave(GOOD, GOOD, ABSENT, ABSENT, clock_ran_out=True), Ask)
    assert isinstance(wave(ABSENT, clock_ran_out=True), Ask)


def test_one_that_took_it_and_went_silent_asks_a_person():
    assert isinstance(wave(GOOD, GOOD, GOOD, SILENT), Wait)
    assert isinstance(wave(GOOD, GOOD, GOOD, SILENT, clock_ran_out=True), Ask)


def test_harm_takes_back_at_once_and_says_where_and_why():
    verdict = wave(GOOD, BUSY, HARMED)
    assert isinstance(verdict, TakeBack)
    assert "d2: its proof: 3 of 16 agree, 90% wanted; at most 0 may be harmed" in verdict.because


def test_harm_in_an_earlier_wave_counts_too():
    assert isinstance(wave(GOOD, before=(GOOD, HARMED)), TakeBack)


def test_a_policy_may_bear_some_harm_but_it_is_no_success():
    some = Policy(max_harmed=1, min_share=0.5)
    assert isinstance(wave(GOOD, HARMED, policy=some), GoOn)
    assert isinstance(wave(HARMED, policy=some, clock_ran_out=True), Ask)
    assert isinstance(wave(GOOD, GOOD, HARMED, HARMED, policy=some), TakeBack)


def test_an_earlier_wave_must_still_stand():
    assert isinstance(wave(GOOD, before=(GOOD, replace(GOOD, active=False))), Wait)


EVIDENCE = st.builds(
    DeviceEvidence,
    device=st.just("?"),
    heard_s=st.none() | st.floats(0, 5000),
    took_it=st.booleans(),
    active=st.booleans(),
    proved=st.booleans(),
    kept=st.booleans(),
    soaked_s=st.floats(0, 2000),
    harm=st.none() | st.just("it failed"),
)
WAVES = st.lists(EVIDENCE, min_size=1, max_size=8)
POLICIES = st.builds(
    Policy,
    soak_s=st.integers(0, 1000),
    max_harmed=st.integers(0, 3),
    min_share=st.floats(0, 1),
    offline_after_s=st.just(900),
)


@given(WAVES, POLICIES, st.booleans())
def test_nothing_goes_on_without_a_device_that_has_shown_it(found, policy, ran_out):
    verdict = wave(*found, policy=policy, clock_ran_out=ran_out)
    stands = [standing(evidence, policy) for evidence in found]
    if isinstance(verdict, GoOn):
        assert Standing.PASSED in stands
        assert not {Standing.WAITING, Standing.SILENT} & set(stands)
    assert isinstance(verdict, TakeBack) == (stands.count(Standing.HARMED) > policy.max_harmed)


@given(
    st.lists(EVIDENCE.map(lambda e: replace(e, heard_s=None, harm=None, active=False)), min_size=1, max_size=8),
    POLICIES,
)
def test_silence_is_neither_success_nor_harm(found, policy):
    assert isinstance(wave(*found, policy=policy), Wait)
    assert isinstance(wave(*found, policy=policy, clock_ran_out=True), Ask)


@given(WAVES, POLICIES)
def test_the_clock_always_brings_a_decision(found, policy):
    assert not isinstance(wave(*found, policy=policy, clock_ran_out=True), Wait)


@given(WAVES, POLICIES, st.integers(0, 7), st.booleans())
def test_more_harm_never_helps(found, policy, which, ran_out):
    worse = [replace(e, harm="it failed") if n == which % len(found) else e for n, e in enumerate(found)]
    rank = {GoOn: 0, Wait: 1, Ask: 1, TakeBack: 2}
    before, now = (wave(*w, policy=policy, clock_ran_out=ran_out) for w in (found, worse))
    if policy.max_harmed == 0:
        assert rank[type(now)] >= rank[type(before)]
    assert isinstance(before, TakeBack) <= isinstance(now, TakeBack)
