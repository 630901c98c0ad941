"""From a frame to the input tensor and from outputs to answers: where pixels go, and where boxes come back to."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.execution.processing import Geometry, Preprocessor, activate, make_decoder, suppress
from skerry.manifest import FORMAT, Classification, Detection, Interface, Preprocess, Tensor

SIDES = st.integers(1, 400)
MODES = st.sampled_from(["crop", "letterbox", "stretch"])
LABELS = ["cat", "dog", "owl"]


def interface(preprocess=None, postprocess=None, size=(4, 6), dtype="float32", labels=LABELS):
    preprocess = preprocess or Preprocess(resize="stretch", scale=1.0)
    channels = 1 if preprocess.color == "gray" else 3
    shape = [1, channels, *size] if preprocess.layout == "nchw" else [1, *size, channels]
    return Interface(
        format=FORMAT,
        name="test",
        version=1,
        task="detection" if isinstance(postprocess, Detection) else "classification",
        inputs=[Tensor("image", dtype, shape)],
        outputs=[],
        preprocess=preprocess,
        postprocess=postprocess or Classification(scores="scores"),
        labels=labels,
    )


def filled(frame, size=(4, 6), dtype="float32", **spec):
    """The input tensor that a frame makes, in a buffer that was full of something else."""
    described = interface(Preprocess(**{"resize": "stretch", "scale": 1.0, **spec}), size=size, dtype=dtype)
    tensor = np.full(described.inputs[0].shape, 77, dtype)
    Preprocessor(described)(frame, tensor)
    return tensor


def numbered(height, width):
    """A frame that says of each pixel where it was: red its row, green its column."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, :, 0] = np.arange(height)[:, None]
    frame[:, :, 1] = np.arange(width)
    frame[:, :, 2] = 200
    return frame


def rows_and_columns(tensor):
    return tensor[0, 0, :, 0].tolist(), tensor[0, 1, 0, :].tolist()


# --- where the frame lies in the input -----------------------------------------------------------------------------


def test_a_crop_scales_the_shorter_side_and_takes_the_middle():
    assert rows_and_columns(filled(numbered(8, 12), resize="crop", resize_to=8)) == ([2, 3, 4, 5], [3, 4, 5, 6, 7, 8])
    halved = filled(numbered(16, 24), resize="crop", resize_to=8, interpolation="nearest")
    assert rows_and_columns(halved) == ([5, 7, 9, 11], [7, 9, 11, 13, 15, 17])
    portrait = Geometry(Preprocess(resize="crop", resize_to=8), (24, 16), (4, 6))
    assert (portrait.scaled, portrait.top, portrait.left) == ((12, 8), -4, -1)


def torchvisions_crop(source, resize_to, target):
    """Resize(n), CenterCrop(m) as torchvision works them out: the longer side is cut off, half a pixel goes to even."""
    short, long = min(source), max(source)
    longer = int(resize_to * long / short)
    scaled = (resize_to, longer) if source[0] <= source[1] else (longer, resize_to)
    return scaled, round((scaled[0] - target[0]) / 2), round((scaled[1] - target[1]) / 2)


@pytest.mark.parametrize(
    "source", [(1080, 1920), (1920, 1080), (720, 1280), (427, 640), (640, 427), (480, 640), (375, 500), (334, 500)]
)
def test_a_crop_lies_where_torchvision_puts_it(source):
    ours = Geometry(Preprocess(resize="crop", resize_to=256), source, (224, 224))
    assert (ours.scaled, -ours.top, -ours.left) == torchvisions_crop(source, 256, (224, 224))


@pytest.mark.parametrize(
    ("source", "scaled", "top", "left"),
    [
        ((3, 9), (2, 6), 1, 0),
        ((8, 3), (4, 2), 0, 2),
        ((2, 6), (2, 6), 1, 0),
        ((5, 9), (3, 6), 0, 0),
        ((9, 8), (4, 4), 0, 1),
    ],
)
def test_a_letterbox_fits_the_whole_frame_and_pads_the_rest(source, scaled, top, left):
    geometry = Geometry(Preprocess(resize="letterbox"), source, (4, 6))
    assert (geometry.scaled, geometry.top, geometry.left) == (scaled, top, left)
    tensor = filled(np.full((*source, 3), 9, np.uint8), resize="letterbox", pad_value=50)
    picture = np.full((4, 6), 50)
    picture[top : top + scaled[0], left : left + scaled[1]] = 9
    np.testing.assert_array_equal(tensor[0], np.broadcast_to(picture, (3, 4, 6)))


def test_of_an_odd_padding_the_larger_part_is_below_and_right():
    below = Geometry(Preprocess(resize="letterbox"), (5, 9), (6, 9))
    right = Geometry(Preprocess(resize="letterbox"), (9, 4), (9, 9))
    assert (below.scaled, below.top) == ((5, 9), 0)
    assert (right.scaled, right.left) == ((9, 4), 2)


def test_a_frame_that_is_smaller_than_the_crop_is_padded_around():
    tensor = filled(np.full((2, 4, 3), 9, np.uint8), resize="crop", resize_to=2, pad_value=50)
    picture = np.full((4, 6), 50)
    picture[1:3, 1:5] = 9
    np.testing.assert_array_equal(tensor[0, 0], picture)


def test_a_crop_may_pad_one_way_and_cut_the_other():
    tensor = filled(numbered(2, 10), resize="crop", resize_to=2, pad_value=50)
    assert tensor[0, 2, :, 0].tolist() == [50, 200, 200, 50]
    assert tensor[0, 1, 1].tolist() == [2, 3, 4, 5, 6, 7]


def test_a_stretch_forgets_the_aspect_ratio():
    tensor = filled(numbered(8, 6), resize="stretch", interpolation="nearest")
    assert rows_and_columns(tensor) == ([1, 3, 5, 7], [0, 1, 2, 3, 4, 5])


def test_a_sliver_of_a_frame_keeps_one_pixel():
    assert Geometry(Preprocess(resize="letterbox"), (1, 4000), (64, 64)).scaled == (1, 64)
    assert filled(np.full((1, 4000, 3), 9, np.uint8), resize="letterbox", pad_value=0).sum() == 3 * 6 * 9


@settings(deadline=None)
@given(MODES, st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(1, 300))
def test_some_of_the_frame_is_always_inside_the_input(mode, source, target, resize_to):
    geometry = Geometry(Preprocess(resize=mode, resize_to=resize_to), source, target)
    top, left, height, width = geometry.inside()
    assert 0 <= top < top + height <= geometry.scaled[0]
    assert 0 <= left < left + width <= geometry.scaled[1]
    assert max(0, geometry.top) + height <= target[0]
    assert max(0, geometry.left) + width <= target[1]


# --- boxes go back where they came from ----------------------------------------------------------------------------


@settings(deadline=None)
@given(MODES, st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(1, 300), st.data())
def test_a_box_placed_in_the_input_comes_back_to_the_frame(mode, source, target, resize_to, data):
    geometry = Geometry(Preprocess(resize=mode, resize_to=resize_to), source, target)
    fractions = np.array([[data.draw(st.floats(0, 1, width=32)) for _ in range(4)]])
    size = np.array([geometry.scaled[1], geometry.scaled[0]] * 2)
    placed = fractions * size + [geometry.left, geometry.top, geometry.left, geometry.top]
    np.testing.assert_allclose(geometry.to_frame(placed.astype(np.float32)), fractions, atol=1e-3)


@settings(deadline=None)
@given(MODES, st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_the_whole_input_and_more_is_no_more_than_the_frame(mode, source, target):
    geometry = Geometry(Preprocess(resize=mode, resize_to=64), source, target)
    everything = np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)
    assert geometry.to_frame(everything).tolist() == [[0, 0, 1, 1]]
    assert geometry.to_frame(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("mode", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("size", [(90, 160), (160, 90), (121, 121)])
def test_a_bright_thing_is_found_where_it_was(mode, size):
    frame = np.zeros((*size, 3), np.uint8)
    top, left, bottom, right = (
        round(size[0] * 0.4),
        round(size[1] * 0.35),
        round(size[0] * 0.6),
        round(size[1] * 0.55),
    )
    frame[top:bottom, left:right] = 255
    described = interface(Preprocess(resize=mode, resize_to=72, scale=1.0, pad_value=0), size=(64, 64))
    tensor = np.zeros((1, 3, 64, 64), np.float32)
    geometry = Preprocessor(described)(frame, tensor)
    rows, columns = np.nonzero(tensor[0, 0] > 127)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    wanted = [[left / size[1], top / size[0], right / size[1], bottom / size[0]]]
    np.testing.assert_allclose(geometry.to_frame(box), wanted, atol=0.02)


# --- from pixels to numbers ----------------------------------------------------------------------------------------


def test_colours_come_in_the_order_that_the_net_knows():
    frame = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    assert filled(frame, color="rgb")[0, :, 0, 0].tolist() == [10, 20, 30]
    assert filled(frame, color="bgr")[0, :, 0, 0].tolist() == [30, 20, 10]


def test_gray_weighs_colours_as_the_eye_does():
    for colour, luma in [((255, 0, 0), 76.245), ((0, 255, 0), 149.685), ((0, 0, 255), 29.07), ((9, 9, 9), 9)]:
        tensor = filled(np.full((5, 5, 3), colour, np.uint8), color="gray")
        assert tensor.shape == (1, 1, 4, 6)
        np.testing.assert_allclose(tensor, luma, rtol=1e-5)


def test_mean_and_std_are_in_the_order_of_the_colours_and_after_the_scale():
    frame = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    spec = {"scale": 0.1, "mean": (1.0, 2.0, 4.0), "std": (0.5, 0.25, 2.0)}
    np.testing.assert_allclose(filled(frame, color="rgb", **spec)[0, :, 0, 0], [0, 0, -0.5], atol=1e-6)
    np.testing.assert_allclose(filled(frame, color="bgr", **spec)[0, :, 0, 0], [4, 0, -1.5], atol=1e-6)
    one_for_all = filled(frame, scale=0.1, mean=(1.0,), std=(2.0,))
    np.testing.assert_allclose(one_for_all[0, :, 0, 0], [0, 0.5, 1], atol=1e-6)


def test_padding_is_normalised_like_any_pixel():
    frame = np.full((2, 6, 3), 50, np.uint8)
    padded = filled(frame, resize="letterbox", pad_value=50, scale=0.1, mean=(1.0, 2.0, 4.0), std=(0.5, 0.25, 2.0))
    np.testing.assert_allclose(padded[0, :, 0, 0], padded[0, :, 1, 0])


def test_a_net_that_takes_bytes_gets_bytes():
    tensor = filled(numbered(8, 12), dtype="uint8", resize="crop", resize_to=8, scale=1 / 255, mean=(0.5,), std=(0.2,))
    assert tensor.dtype == np.uint8
    assert rows_and_columns(tensor) == ([2, 3, 4, 5], [3, 4, 5, 6, 7, 8])
    boxed = filled(np.full((2, 6, 3), 255, np.uint8), dtype="uint8", resize="letterbox", pad_value=114)
    assert boxed[0, 0, :, 0].tolist() == [114, 255, 255, 114]


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
def test_nhwc_holds_the_same_numbers_the_other_way_round(color, resize):
    frame = np.random.default_rng(5).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    spec = {"color": color, "resize": resize, "resize_to": 7, "mean": (3.0,), "std": (0.5,)}
    planes = filled(frame, layout="nchw", **spec)
    pixels = filled(frame, layout="nhwc", **spec)
    np.testing.assert_array_equal(np.moveaxis(planes, 1, -1), pixels)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=6), MODES)
def test_a_frame_of_another_size_leaves_nothing_behind(sizes, mode):
    described = interface(Preprocess(resize=mode, resize_to=8))
    preprocess, tensor = Preprocessor(described), np.zeros((1, 3, 4, 6), np.float32)
    for number, size in enumerate(sizes):
        frame = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        fresh = np.full((1, 3, 4, 6), np.nan, np.float32)
        assert preprocess(frame, tensor).source == Preprocessor(described)(frame, fresh).source == size
        np.testing.assert_array_equal(tensor, fresh)


def test_the_frame_itself_is_left_alone():
    frame = np.random.default_rng(5).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    before = frame.copy()
    frame.setflags(write=False)  # a decoder's frames are
    filled(frame, resize="letterbox")
    np.testing.assert_array_equal(frame, before)


# --- from scores to labels -----------------------------------------------------------------------------------------


def classified(scores, labels=LABELS, slack=0.0, **post):
    described = interface(
        postprocess=Classification(**{"scores": "scores", "activation": "none", **post}), labels=labels
    )
    geometry = Geometry(described.preprocess, (4, 6), (4, 6))
    return [(a.label, a.score) for a in make_decoder(described)({"scores": np.float32([scores])}, geometry, slack)]


def test_the_best_labels_come_first_and_no_more_than_asked_for():
    assert classified([0.25, 0.5, 0.125], top=2) == [("dog", 0.5), ("cat", 0.25)]
    assert classified([0.25, 0.5, 0.125], top=9) == [("dog", 0.5), ("cat", 0.25), ("owl", 0.125)]


def test_of_equal_scores_the_first_class_comes_first():
    assert [label for label, _ in classified([0.5, 0.75, 0.5, 0.5])] == ["dog", "cat", "owl", "class 3"]


def test_a_class_beyond_the_labels_is_named_by_its_number():
    assert classified([0, 0, 0, 0.5, 1], top=2) == [("class 4", 1), ("class 3", 0.5)]
    assert classified([0.5], labels=[]) == [("class 0", 0.5)]


def test_scores_below_the_least_are_left_out_unless_slack_lets_them_in():
    assert classified([0.25, 0.5, 0.125], min_score=0.25) == [("dog", 0.5), ("cat", 0.25)]
    assert classified([0.25, 0.5, 0.125], min_score=0.75) == []
    assert classified([0.25, 0.5, 0.125], min_score=0.75, slack=0.25) == [("dog", 0.5)]


def test_softmax_shares_one_out():
    found = dict(classified([1.0, 2.0, 4.0], activation="softmax"))
    powers = {"cat": np.e, "dog": np.e**2, "owl": np.e**4}
    assert found == pytest.approx({label: power / sum(powers.values()) for label, power in powers.items()}, rel=1e-5)
    assert sum(found.values()) == pytest.approx(1)


def test_sigmoid_judges_each_class_by_itself():
    found = dict(classified([0.0, 2.0, -2.0], activation="sigmoid"))
    assert found == pytest.approx({"cat": 0.5, "dog": 0.880797, "owl": 0.119203}, rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_huge_scores_do_not_overflow(activation):
    values = activate(np.float32([[1e38, -1e38, 0]]), activation)
    assert np.isfinite(values).all()
    assert values[0, 0] == pytest.approx(1)
    assert values[0, 1] == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("scores", [[np.nan] * 3, [np.nan, 1.0, 0.5], [0.5, np.nan, np.inf], [-np.inf] * 3])
def test_scores_that_are_no_numbers_do_not_crash_the_decoder(activation, scores):
    with np.errstate(invalid="ignore"):  # numpy's own remark about infinity minus infinity
        found = classified(scores, activation=activation)
    assert not any(np.isnan(score) for _, score in found)


# --- from boxes to answers -----------------------------------------------------------------------------------------


def detected(boxes, scores, slack=0.0, source=(64, 64), size=(64, 64), labels=LABELS, mode="stretch", **post):
    post = {"min_score": 0.5, "iou_threshold": 0.5, "box_units": "pixel", **post}
    described = interface(
        Preprocess(resize=mode), Detection(boxes="boxes", scores="scores", **post), size=size, labels=labels
    )
    geometry = Geometry(described.preprocess, source, size)
    outputs = {"boxes": np.float32([boxes]), "scores": np.float32([scores])}
    return make_decoder(described)(outputs, geometry, slack)


def test_a_box_is_told_in_fractions_of_the_frame():
    (found,) = detected([[16, 8, 48, 32]], [[0, 0.75, 0]])
    assert (found.label, found.score, found.box) == ("dog", 0.75, (0.25, 0.125, 0.75, 0.5))


@pytest.mark.parametrize(
    ("box", "box_format", "box_units"),
    [
        ([16, 8, 48, 32], "xyxy", "pixel"),
        ([0.25, 0.125, 0.75, 0.5], "xyxy", "fraction"),
        ([32, 20, 32, 24], "cxcywh", "pixel"),
        ([0.5, 0.3125, 0.5, 0.375], "cxcywh", "fraction"),
    ],
)
def test_every_way_to_write_a_box_means_the_same_box(box, box_format, box_units):
    (found,) = detected([box], [[1, 0, 0]], box_format=box_format, box_units=box_units)
    assert found.box == (0.25, 0.125, 0.75, 0.5)


def test_width_and_height_are_not_mixed_up():
    (found,) = detected([[0.25, 0.5, 0.75, 1.0]], [[1, 0, 0]], size=(32, 64), box_units="fraction")
    assert found.box == (0.25, 0.5, 0.75, 1.0)
    (found,) = detected([[16, 16, 48, 32]], [[1, 0, 0]], size=(32, 64))
    assert found.box == (0.25, 0.5, 0.75, 1.0)


def test_a_box_in_a_letterbox_is_told_without_the_bars_and_cut_to_the_frame():
    (found,) = detected([[0, 0, 32, 32]], [[1, 0, 0]], source=(32, 64), mode="letterbox")
    assert found.box == (0, 0, 0.5, 0.5)  # the frame lies at rows 16 to 48


def test_the_background_is_not_an_answer():
    found = detected([[0, 0, 9, 9], [20, 20, 40, 40]], [[0.9, 0.1, 0], [0.2, 0.8, 0]], background=0)
    assert [answer.label for answer in found] == ["dog"]


def test_softmax_over_the_classes_knows_the_background():
    (found,) = detected([[0, 0, 9, 9]], [[0.0, 3.0, 0.0]], background=0, activation="softmax")
    assert found.score == pytest.approx(np.e**3 / (np.e**3 + 2))


def test_the_better_of_two_overlapping_boxes_stays_and_other_classes_are_not_in_its_way():
    boxes = [[0, 0, 20, 20], [1, 1, 21, 21], [1, 1, 21, 21], [40, 40, 60, 60]]
    found = detected(boxes, [[0.6, 0, 0], [0.9, 0, 0], [0, 0.7, 0], [0.8, 0, 0]])
    assert [(answer.label, round(answer.score, 1)) for answer in found] == [("cat", 0.9), ("cat", 0.8), ("dog", 0.7)]


def test_one_box_may_be_of_two_classes():
    assert {answer.label for answer in detected([[0, 0, 9, 9]], [[0.6, 0.7, 0.2]])} == {"cat", "dog"}


def test_no_more_boxes_than_the_most_and_those_are_the_best_of_all_classes():
    boxes = [[10 * n, 0, 10 * n + 8, 8] for n in range(6)]
    scores = [[0.5 + n / 20, 0, 0] if n % 2 else [0, 0.5 + n / 20, 0] for n in range(6)]
    found = detected(boxes, scores, max_boxes=3)
    assert [round(answer.score, 2) for answer in found] == [0.75, 0.7, 0.65]


def test_slack_shows_the_boxes_just_below_the_threshold():
    boxes, scores = [[0, 0, 9, 9], [20, 0, 29, 9]], [[0.625, 0, 0], [0.375, 0, 0]]
    assert [answer.score for answer in detected(boxes, scores)] == [0.625]
    assert [answer.score for answer in detected(boxes, scores, slack=0.125)] == [0.625, 0.375]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_an_empty_picture_has_no_answers(activation):
    assert detected([[0, 0, 9, 9]], [[-9, -9, -9]], min_score=0.9, activation=activation) == []
    assert detected(np.zeros((0, 4)), np.zeros((0, 3)), activation=activation) == []


def test_boxes_without_an_area_are_kept_apart_and_do_not_divide_by_zero():
    assert len(detected([[5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 4, 4]], [[0.9, 0, 0]] * 3)) == 3


def plain_iou(a, b):
    across = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / union if union else 0.0


def plainly_kept(boxes, scores, threshold):
    """The definition, box by box: one stays unless a better one that stays overlaps it by more than the threshold."""
    kept = []
    for candidate in sorted(range(len(boxes)), key=lambda index: (-scores[index], index)):
        if all(plain_iou(boxes[candidate], boxes[better]) <= threshold for better in kept):
            kept.append(candidate)
    return kept


BOXES = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 12), st.integers(0, 12)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None)
@given(st.lists(st.tuples(BOXES, st.integers(0, 10)), max_size=25), st.sampled_from([0.0, 0.23, 0.47, 0.71, 1.0]))
def test_suppression_keeps_what_its_definition_keeps(candidates, threshold):
    boxes, scores = [box for box, _ in candidates], [score for _, score in candidates]
    found = suppress(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), threshold)
    assert found.tolist() == plainly_kept(boxes, scores, threshold)


@settings(deadline=None)
@given(st.lists(st.tuples(BOXES, st.integers(0, 2), st.integers(1, 16)), max_size=25))
def test_a_detector_suppresses_class_by_class(candidates):
    boxes = np.array([box for box, _, _ in candidates], np.float32).reshape(-1, 4)
    scores = np.zeros((len(candidates), 3), np.float32)
    for index, (_, label, score) in enumerate(candidates):
        scores[index, label] = score / 16
    found = detected(boxes, scores, min_score=1 / 16, iou_threshold=0.47)
    wanted = []
    for label in range(3):
        mine = [index for index, candidate in enumerate(candidates) if candidate[1] == label]
        kept = plainly_kept([candidates[i][0] for i in mine], [candidates[i][2] for i in mine], 0.47)
        wanted += [(LABELS[label], candidates[mine[k]][2] / 16, candidates[mine[k]][0]) for k in kept]
    assert sorted((a.label, a.score, tuple(round(v * 64) for v in a.box)) for a in found) == sorted(wanted)
    assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_boxes_and_scores_that_are_no_numbers_do_not_crash_the_decoder(activation, value):
    boxes = [[value] * 4, [10, 10, 20, 20], [40, 40, value, 50], [30, 0, 39, 9]]
    scores = [[9, -9, -9], [8, -9, -9], [-9, 8, -9], [value, value, value]]
    with np.errstate(invalid="ignore"):
        found = detected(boxes, scores, activation=activation)
    assert all(answer.label in LABELS and not np.isnan(answer.score) for answer in found)


def test_a_frame_full_of_boxes_does_not_stall_the_worker():
    """A blinded camera makes some detectors see thousands of things; only the best few are told."""
    corners = np.random.default_rng(0).uniform(0, 640, (8400, 2))
    scores = np.zeros((8400, 3), np.float32)
    scores[:, 0] = np.random.default_rng(1).uniform(0.6, 1, 8400)
    started = time.perf_counter()
    found = detected(np.concatenate([corners, corners + 4], axis=1), scores, size=(640, 640), max_boxes=100)
    took = time.perf_counter() - started
    assert len(found) == 100
    assert took < 0.5, f"{took:.1f} s"
