"""Ranges: what each method promises on any values, and what it is for."""

from __future__ import annotations

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from compiler.quantization import calibrate
from compiler.quantization.histogram import HALF, Histogram
from skerry.errors import CalibrationError

Array = np.ndarray
# Ordinary numbers, nothing in between, and the smallest that there are.
VALUES = st.one_of(
    st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, 1e-25, -1e-25, 4096.0, -4096.0, 1e6]),
)
FRAMES = st.lists(st.lists(VALUES, min_size=1, max_size=40).map(np.float32), min_size=1, max_size=6)


def said(_text: str) -> None:
    """Progress that nobody reads."""


def observed(method: str, frames: list[Array]) -> calibrate.Range:
    observer = calibrate.observer(method)
    for frame in frames:
        observer.add(frame)
    return observer.range()


def counted(frames: list[Array]) -> Histogram:
    histogram = Histogram()
    for frame in frames:
        histogram.add(frame)
    return histogram


def squared_error(values: Array, found: calibrate.Range) -> float:
    step = (found[1] - found[0]) / 255
    levels = np.clip(np.rint(values / step), np.rint(found[0] / step), np.rint(found[1] / step))
    return float(((levels * step - values.astype(np.float64)) ** 2).mean())


# The histogram


@given(FRAMES)
@settings(max_examples=30, deadline=None)
def test_the_histogram_is_what_knowing_the_range_beforehand_would_give(frames: list[Array]) -> None:
    found = counted(frames)
    values = np.concatenate(frames)
    assert found.counts.sum() == values.size
    if not found.width:
        assert not values.any()
        return
    exact = np.floor(values.astype(np.float64) / found.width).astype(int) + HALF
    assert np.array_equal(found.counts, np.bincount(exact, minlength=2 * HALF))
    assert found.edges()[0] <= values.min()
    assert values.max() < found.edges()[-1]


@given(FRAMES, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_values_does_not_matter(frames: list[Array], random) -> None:
    values = list(np.concatenate(frames))
    random.shuffle(values)
    one, other = counted(frames), counted([np.float32([value]) for value in values])
    assert one.width == other.width
    assert np.array_equal(one.counts, other.counts)
    assert (one.low, one.high) == (other.low, other.high)


@given(FRAMES)
@settings(max_examples=30, deadline=None)
def test_half_of_the_bins_are_in_use_at_least(frames: list[Array]) -> None:
    found = counted(frames)
    magnitude = np.abs(np.concatenate(frames)).max()
    if magnitude > 1e-30:
        assert magnitude >= found.width * (HALF // 2)


def test_what_the_histogram_holds_does_not_grow() -> None:
    found, random = Histogram(), np.random.default_rng(0)
    size = found.counts.nbytes
    for scale in np.geomspace(1e-3, 1e6, 50):
        found.add(random.normal(0, scale, 1000).astype(np.float32))
    assert found.counts.nbytes == size
    assert found.counts.sum() == 50_000


# What every method promises


@pytest.mark.parametrize("method", calibrate.METHODS)
@given(frames=FRAMES)
@settings(max_examples=15, deadline=None)
def test_a_range_holds_zero_has_a_width_and_goes_no_further_than_the_values(method: str, frames: list[Array]) -> None:
    low, high = observed(method, frames)
    values = np.concatenate(frames).astype(np.float64)
    assert low <= 0.0 < high
    assert min(0.0, values.min()) <= low
    assert high <= max(values.max(), calibrate._LEAST)


@pytest.mark.parametrize("method", calibrate.METHODS)
@given(frames=FRAMES, power=st.integers(-8, 8))
@settings(max_examples=10, deadline=None)
def test_a_range_scales_with_the_values(method: str, frames: list[Array], power: int) -> None:
    magnitude = np.abs(np.concatenate(frames)).max()
    if not 1e-2 < magnitude < 1e20:
        return  # what vanishes in float32, or has the least width
    once = observed(method, frames)
    scaled = observed(method, [frame * np.float32(2.0**power) for frame in frames])
    least = 1.01 * calibrate._LEAST * max(1.0, 2.0**power)
    assert scaled == pytest.approx([side * 2.0**power for side in once], rel=1e-6, abs=least)


@pytest.mark.parametrize("method", calibrate.METHODS)
def test_a_relu_needs_nothing_below_zero(method: str) -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=(4, 5000)), 0).astype(np.float32)
    assert observed(method, list(values))[0] == 0.0


@pytest.mark.parametrize("method", calibrate.METHODS)
def test_a_value_that_is_never_anything_but_zero_still_has_a_grid(method: str) -> None:
    assert observed(method, [np.zeros(9, np.float32)] * 3) == (0.0, pytest.approx(1e-6))


# What each one is for: a bell of width 1, and something far out


BELL = np.random.default_rng(7).normal(size=(100, 2000)).astype(np.float32)


def test_minmax_keeps_whatever_was_there_once() -> None:
    frames = BELL.copy()
    frames[3, 5] = 500.0
    assert observed("minmax", list(frames))[1] == 500.0


def test_percentile_frames_forgets_one_wild_frame_and_keeps_what_every_frame_has() -> None:
    wild, always = BELL.copy(), BELL.copy()
    wild[3] *= 500.0
    always[:, 5] = 50.0
    assert observed("percentile-frames", list(wild))[1] < 6.0
    assert observed("percentile-frames", list(always))[1] == 50.0


def test_percentile_leaves_out_a_share_of_all_values_wherever_they_stand() -> None:
    frames = BELL.copy()
    frames[::12, 5] = 50.0  # 9 of 200,000: fewer than the 10 that may be left out above
    low, high = observed("percentile", list(frames))
    assert high < 6.0
    left_out = int(((frames < low) | (frames > high)).sum())
    assert 10 <= left_out <= 22
    frames[::8, 5] = 50.0  # 13: more than that
    assert observed("percentile", list(frames))[1] == pytest.approx(50.0, rel=0.01)


def test_mse_has_the_least_error_of_all_methods() -> None:
    for tail in (1.0, 20.0, 200.0):
        frames = BELL.copy()
        frames[::10, ::500] *= tail
        errors = {method: squared_error(frames, observed(method, list(frames))) for method in calibrate.METHODS}
        assert errors["mse"] <= min(errors.values()) * 1.02, (tail, errors)


def test_mse_clips_when_the_bulk_gains_more_than_the_outlier_loses() -> None:
    frames = np.concatenate([BELL.reshape(-1)] * 10)
    frames[0] = 12.0
    low, high = observed("mse", [frames])
    assert high < 8.0
    assert squared_error(frames, (low, high)) < squared_error(frames, observed("minmax", [frames])) / 2


def test_entropy_cuts_a_long_thin_tail() -> None:
    frames = BELL.copy()
    frames[::10, 5] = 50.0
    assert observed("minmax", list(frames))[1] == 50.0
    assert observed("entropy", list(frames))[1] < 10.0


@pytest.mark.slow  # theirs takes seconds
@pytest.mark.parametrize("draw", ["normal", "laplace", "exponential"])
def test_entropy_agrees_with_onnxruntimes(draw: str) -> None:
    values = getattr(np.random.default_rng(1), draw)(size=200_000).astype(np.float32)
    values = np.abs(values)
    theirs = HistogramCollector("entropy", False, 2048, 128, 99.99, "same")
    histogram = np.histogram(np.concatenate([values, -values]), 4097)
    _, wanted = theirs.get_entropy_threshold((*histogram, -values.max(), values.max()), 128)[:2]

    found = observed("entropy", [values, -values])[1]

    assert found == pytest.approx(float(np.asarray(wanted).item()), rel=0.25)


# On a net


def test_ranges_come_for_the_input_and_every_float_value() -> None:
    model = nets.residual()
    tensors = (np.random.default_rng(i).normal(size=(1, 3, 16, 16)).astype(np.float32) for i in range(4))

    found = calibrate.ranges(model, tensors, calibrate.DEFAULT, 1, said)

    assert found.keys() == {"image", *(v for node in model.graph.node for v in node.output)}


def test_every_frame_is_seen_once_and_told() -> None:
    told: list[str] = []
    tensors = [np.ones((1, 3, 16, 16), np.float32)] * 3
    calibrate.ranges(nets.residual(), iter(tensors), "entropy", 1, told.append)
    assert told == [f"calibrating, frame {number}" for number in (1, 2, 3)]


def test_no_frame_is_no_calibration() -> None:
    with pytest.raises(CalibrationError, match="no calibration frame"):
        calibrate.ranges(nets.residual(), [], "minmax", 1, said)


@pytest.mark.parametrize("method", calibrate.METHODS)
def test_a_net_that_overflows_is_told_by_value_and_frame(method: str) -> None:
    calm, wild = np.ones((1, 3, 16, 16), np.float32), np.full((1, 3, 16, 16), 3e38, np.float32)
    with pytest.raises(CalibrationError, match=r"value stem is not finite in calibration frame 2"):
        calibrate.ranges(nets.residual(), [calm, wild], method, 1, said)
