"""What a release must show on live frames."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import ProbationPolicy
from edge_agent.counts import Counts
from edge_agent.probation import judge, lower_end
from skerry.update import Failed, Kept

POLICY = ProbationPolicy(seconds=60.0, min_frames=50, max_failed=0.01, max_more_superseded=0.1)
FINE = Counts(captured=1500, processed=1500)
BEFORE = Counts(captured=1500, processed=1490, superseded=10)


def test_a_release_that_keeps_up_for_the_whole_time_is_kept():
    assert judge(FINE, BEFORE, 60.0, POLICY) == Kept()
    assert judge(FINE, BEFORE, 59.9, POLICY) is None


def test_silence_is_neither_success_nor_harm():
    assert judge(Counts(), BEFORE, 10_000.0, POLICY) is None
    assert judge(Counts(captured=49, processed=49), BEFORE, 10_000.0, POLICY) is None


def test_failing_frames_end_it_at_once():
    verdict = judge(Counts(captured=20, processed=17, failed=3), BEFORE, 1.0, POLICY)
    assert isinstance(verdict, Failed)
    assert verdict.verdict
    assert "3 of 20 live frames failed" in verdict.why


def test_one_failed_frame_of_a_few_means_little_until_the_end():
    assert judge(Counts(captured=20, processed=19, failed=1), BEFORE, 1.0, POLICY) is None
    assert isinstance(judge(Counts(captured=60, processed=59, failed=1), BEFORE, 60.0, POLICY), Failed)


def test_a_moment_of_load_on_the_device_is_not_the_releases_doing():
    assert judge(Counts(captured=12, processed=9, superseded=3), BEFORE, 0.5, POLICY) is None


def test_a_release_that_lets_frames_go_by_is_too_slow():
    verdict = judge(Counts(captured=100, processed=40, superseded=60), BEFORE, 4.0, POLICY)
    assert isinstance(verdict, Failed)
    assert "60% of 100 frames" in verdict.why
    assert "the release before it 1%" in verdict.why


def test_a_slow_release_is_as_good_as_the_slow_one_before_it():
    before = Counts(captured=100, processed=45, superseded=55)
    assert judge(Counts(captured=100, processed=40, superseded=60), before, 60.0, POLICY) is None, "too few processed"
    assert judge(Counts(captured=200, processed=80, superseded=120), before, 60.0, POLICY) == Kept()


def test_a_first_release_has_nothing_to_be_slower_than():
    assert judge(Counts(captured=200, processed=80, superseded=120), None, 60.0, POLICY) == Kept()


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_lower_end_of_a_share_lies_below_it(part, more):
    whole = part + more
    assert 0.0 <= lower_end(part, whole) <= part / whole


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.floats(0, 1000), st.floats(0, 1000))
def test_more_time_never_turns_a_failure_into_success(processed, superseded, failed, earlier, later):
    seen = Counts(processed + superseded + failed, processed, superseded, failed)
    first, second = (judge(seen, BEFORE, t, POLICY) for t in sorted((earlier, later)))
    assert not (isinstance(first, Failed) and isinstance(second, Kept))


def test_nothing_seen_is_no_share():
    assert lower_end(0, 0) == 0.0
