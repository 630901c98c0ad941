"""Our resize is Pillow's bilinear, pixel for pixel but for a rounding; OpenCV's where a recipe says so."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skerry.execution.parity import Noise
from skerry.execution.resize import Resizer, taps

KINDS = [("nearest", False), ("bilinear", False), ("bilinear", True)]
SIDES = st.integers(1, 300)


def photo(height, width, seed=0):
    """What a lens gives: large soft shapes, fine texture, and the sensor's noise."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cell, strength in ((40, 0.6), (6, 0.3), (1, 0.1)):
        rough = random.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        soft = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        image += strength * np.asarray(soft, np.float32)
    return image.clip(0, 255).astype(np.uint8)


def by_pillow(frame, height, width):
    """[3, height, width], as `Resizer` gives it."""
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1)


def whole(frame, height, width, interpolation="bilinear", antialias=True):  # noqa: FBT002
    return Resizer(frame.shape[:2], (height, width), (0, 0, height, width), interpolation, antialias)(frame).copy()


def row(values):
    """A frame that is one pixel high, grey by column."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1080, 1920), (256, 455)),
        ((1080, 1920), (640, 640)),
        ((720, 1280), (256, 455)),
        ((480, 640), (224, 224)),
        ((271, 641), (113, 227)),
        ((97, 101), (89, 97)),
        ((120, 160), (480, 640)),
        ((37, 53), (224, 224)),
        ((224, 224), (224, 224)),
        ((240, 320), (240, 31)),
        ((8, 2000), (64, 96)),
        ((50, 7), (60, 61)),
        ((1500, 7), (40, 7)),
        ((3, 2), (64, 64)),
    ],
)
def test_a_photo_resizes_as_pillow_resizes_it(source, target):
    frame = photo(*source)
    ours, theirs = whole(frame, *target), by_pillow(frame, *target)
    noise = Noise()
    noise.add(theirs, ours)
    assert np.abs(ours - theirs).max() <= 1
    assert noise.db() >= 55


@pytest.mark.parametrize(
    ("source", "target"), [((1920, 1080), (640, 640)), ((1500, 7), (40, 61)), ((960, 96), (160, 160))]
)
def test_a_tall_photo_differs_in_what_pillow_rounds_first(source, target):
    """Pillow takes columns first, as we do, but rows where that is less work; since when, its version decides."""
    frame = photo(*source)
    noise = Noise()
    noise.add(by_pillow(frame, *target), whole(frame, *target))
    assert noise.db() >= 48


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_noise_of_any_size_resizes_as_pillow_resizes_it(height, width, to_height, to_width, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    difference = np.abs(whole(frame, to_height, to_width) - by_pillow(frame, to_height, to_width))
    assert difference.max() <= 2  # a half may fall to either side on each axis: Pillow's weights have 22 bits, ours 24
    assert (difference > 1).mean() < 0.01


@pytest.mark.parametrize("frame", [np.zeros((1, 1, 3), np.uint8), row([255]), row([0, 255]), row([255] * 300)])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_the_smallest_frames_and_results_are_pillows_too(frame, size):
    assert np.abs(whole(frame, *size) - by_pillow(frame, *size)).max() <= 1


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(KINDS))
def test_every_row_of_the_weights_is_an_average(source, target, kind):
    matrix = taps(source, target, *kind)
    assert matrix.shape == (target, source)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(KINDS))
def test_the_weights_are_the_same_from_either_end(source, target, kind):
    matrix = taps(source, target, *kind)
    if kind[0] == "nearest":  # a centre between two pixels goes to the later one, so only those tell the ends apart
        tied = (2 * np.arange(target) + 1) * source % (2 * target) == 0
        matrix = matrix[~tied & ~tied[::-1]]
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 255), SIDES, SIDES, st.sampled_from(KINDS))
def test_a_flat_frame_stays_flat(value, side, to_side, kind):
    frame = np.full((side, 9, 3), value, np.uint8)
    assert (whole(frame, to_side, 5, *kind) == value).all()


@pytest.mark.parametrize(
    ("interpolation", "antialias", "values", "wanted"),
    [
        ("nearest", False, [10, 20], [10, 10, 20, 20]),
        ("nearest", False, [10, 20, 30, 40], [20, 40]),  # the centres lie at 1 and 3
        ("nearest", False, [10, 20, 30], [10, 30]),  # at 0.75 and 2.25
        ("nearest", True, [10, 20, 30, 40], [20, 40]),
        # A quarter of the way from centre to centre; past the last centre there is nothing but the border.
        ("bilinear", False, [0, 100], [0, 25, 75, 100]),
        ("bilinear", True, [0, 100], [0, 25, 75, 100]),
        # Every other pair, and what lies between them is not seen: that is aliasing, and OpenCV's way.
        ("bilinear", False, [0, 100, 20, 40], [50, 30]),
        ("bilinear", False, [9, 10, 9, 9, 20, 9], [10, 20]),
        # A triangle over four pixels, cut off at the border: 3/7, 3/7, 1/7.
        ("bilinear", True, [0, 70, 140, 210], [50, 160]),
        ("bilinear", False, [0, 1], [0, 0, 1, 1]),
        ("bilinear", False, [0, 1, 0, 1], [1, 1]),  # a half rounds up
    ],
)
def test_a_row_of_pixels_comes_out_as_worked_out_by_hand(interpolation, antialias, values, wanted):
    frame = row(values)
    np.testing.assert_array_equal(whole(frame, 1, len(wanted), interpolation, antialias)[0, 0], wanted)
    standing = whole(frame.transpose(1, 0, 2), len(wanted), 1, interpolation, antialias)
    np.testing.assert_array_equal(standing[0, :, 0], wanted)


@settings(deadline=None)
@given(SIDES, SIDES)
def test_nearest_takes_the_pixel_under_the_centre(source, target):
    found = taps(source, target, "nearest", antialias=False).argmax(axis=1)
    twice_the_centres = (2 * np.arange(target) + 1) * source
    exact = twice_the_centres // (2 * target)
    between_two = twice_the_centres % (2 * target) == 0  # either is under it
    assert ((found == exact) | (between_two & (found == exact - 1))).all()


def test_rows_columns_and_colours_are_not_mixed_up():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[0, 0] = (10, 20, 30)
    frame[3, 5] = (40, 50, 60)
    result = whole(frame, 8, 12, "nearest", antialias=False)
    np.testing.assert_array_equal(result[:, :2, :2], np.broadcast_to(np.reshape((10, 20, 30), (3, 1, 1)), (3, 2, 2)))
    np.testing.assert_array_equal(result[:, 6:, 10:], np.broadcast_to(np.reshape((40, 50, 60), (3, 1, 1)), (3, 2, 2)))
    assert result.sum() == 4 * (10 + 20 + 30 + 40 + 50 + 60)


@settings(deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_a_window_is_a_part_of_the_whole(data, kind):
    height, width, tall, wide = (data.draw(st.integers(1, 120)) for _ in range(4))
    top, left = data.draw(st.integers(0, tall - 1)), data.draw(st.integers(0, wide - 1))
    window = (top, left, data.draw(st.integers(1, tall - top)), data.draw(st.integers(1, wide - left)))
    frame = photo(height, width)
    part = Resizer((height, width), (tall, wide), window, *kind)(frame)
    cut = whole(frame, tall, wide, *kind)[:, top : top + window[2], left : left + window[3]]
    difference = np.abs(part - cut)
    assert difference.max() <= 1  # a sum that lies on a half may fall to either side
    assert difference.sum() <= 3 + 0.02 * difference.size


@pytest.mark.parametrize("window", [(16, 115, 224, 224), (0, 0, 1, 1), (255, 454, 1, 1), (13, 7, 201, 401)])
def test_a_window_of_a_large_frame_is_pillows_too(window):
    frame = photo(1080, 1920)
    top, left, height, width = window
    ours = Resizer((1080, 1920), (256, 455), window, "bilinear", antialias=True)(frame)
    theirs = by_pillow(frame, 256, 455)[:, top : top + height, left : left + width]
    assert np.abs(ours - theirs).max() <= 1


def test_the_next_frame_overwrites_the_result_and_nothing_of_the_frame_before_stays():
    resizer = Resizer((20, 30), (8, 8), (0, 0, 8, 8), "bilinear", antialias=True)
    first = resizer(photo(20, 30, seed=1))
    kept = first.copy()
    second = resizer(photo(20, 30, seed=2))
    assert second is first
    assert (second != kept).any()
    np.testing.assert_array_equal(resizer(photo(20, 30, seed=1)), kept)


def test_a_frame_may_be_a_view():
    frame = photo(40, 60)
    flipped, cropped = frame[::-1, ::-1], frame[5:25, 10:40]
    np.testing.assert_array_equal(whole(flipped, 8, 8), whole(np.ascontiguousarray(flipped), 8, 8))
    np.testing.assert_array_equal(whole(cropped, 8, 8), whole(np.ascontiguousarray(cropped), 8, 8))


def test_a_panorama_costs_no_more_memory_than_the_window_of_it_that_is_wanted():
    tracemalloc.start()
    try:
        Resizer((16, 800), (256, 12800), (16, 6288, 224, 224), "bilinear", antialias=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20, f"{peak >> 20} MiB at most"
