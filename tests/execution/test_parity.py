"""How far two runs differ: a ratio of powers with fixed ends, and answers that count only where fp32 is sure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.execution.parity import CLEAN_DB, SAME_BOX_IOU, Agreement, Noise, agree, is_decided, proof_decoder
from skerry.execution.processing import Geometry
from skerry.manifest import FORMAT, Classification, Detection, Interface, Limits, Preprocess, Tensor
from skerry.wire import Answer

VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


def db(*pairs):
    noise = Noise()
    for reference, candidate in pairs:
        noise.add(np.array(reference), np.array(candidate))
    return noise.db()


# --- the ratio -----------------------------------------------------------------------------------------------------


def test_a_tenth_of_the_amplitude_is_twenty_decibels_and_a_hundredth_forty():
    assert db(([1.0, 0.0], [1.1, 0.0])) == pytest.approx(20)
    assert db(([1.0, 0.0], [1.0, 0.01])) == pytest.approx(40)
    assert db(([1.0], [2.0])) == 0
    assert db(([1.0], [-9.0])) == pytest.approx(-20)


@settings(deadline=None)
@given(VALUES)
def test_the_same_numbers_are_clean(values):
    assert db((values, values)) == CLEAN_DB


def test_nothing_compared_with_nothing_is_clean_and_so_are_zeros():
    assert db() == CLEAN_DB
    assert db(([], [])) == CLEAN_DB
    assert db(([0.0, 0.0], [0.0, -0.0])) == CLEAN_DB


def test_noise_without_a_signal_is_the_worst():
    assert db(([0.0], [1e-9])) == -CLEAN_DB


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_is_not_finite_is_the_worst_and_stays_it(bad):
    assert db(([1.0, 2.0], [1.0, bad])) == -CLEAN_DB
    assert db(([1.0], [bad]), ([1e6] * 100, [1e6] * 100)) == -CLEAN_DB


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("candidate", [0.0, 1.0, math.nan, math.inf])
def test_a_reference_that_is_not_finite_proves_nothing(bad, candidate):
    assert db(([1.0, bad], [1.0, candidate])) == -CLEAN_DB


def test_another_number_of_values_is_the_worst():
    assert db(([1.0, 2.0], [1.0])) == -CLEAN_DB
    assert db(([1.0, 2.0], [])) == -CLEAN_DB


def test_the_same_values_in_another_layout_are_the_same():
    values = np.arange(12.0)
    assert db((values.reshape(3, 4), values.reshape(1, 12))) == CLEAN_DB


@settings(deadline=None)
@given(VALUES, st.floats(1e-3, 1e3))
def test_the_unit_of_measure_does_not_matter(values, unit):
    reference = np.array(values)
    candidate = reference + np.linspace(-1, 1, len(values))
    assert db((reference * unit, candidate * unit)) == pytest.approx(db((reference, candidate)), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, st.floats(-10, 10, width=32)), min_size=1, max_size=5))
def test_frames_are_pooled_as_if_they_were_one(frames):
    pairs = [(np.array(values), np.array(values) + offset) for values, offset in frames]
    joined = (np.concatenate([r for r, _ in pairs]), np.concatenate([c for _, c in pairs]))
    assert db(*pairs) == pytest.approx(db(joined), abs=1e-6)


def test_a_quiet_frame_weighs_as_little_as_it_is():
    loud, quiet = ([100.0], [100.1]), ([0.1], [0.0])
    assert db(quiet) == pytest.approx(0)
    assert db(loud, quiet) == pytest.approx(57, abs=0.1)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_a_ratio_is_always_a_number_that_json_has(reference, candidate):
    assert -CLEAN_DB <= db((reference, candidate)) <= CLEAN_DB


def test_bytes_are_compared_as_numbers():
    assert db((np.array([200], np.uint8), np.array([100], np.uint8))) == pytest.approx(20 * math.log10(2))
    assert db((np.array([1], np.uint8), np.array([2], np.uint8))) == 0  # 1 - 2 does not wrap around


def test_half_precision_is_far_above_every_limit():
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    assert db((values.astype(np.float16), values)) > 65


# --- answers of a classifier ---------------------------------------------------------------------------------------

LABELS = ["cat", "dog", "owl"]
CLASSIFIER = Interface(
    format=FORMAT,
    name="test",
    version=1,
    task="classification",
    inputs=[Tensor("image", "float32", [1, 3, 4, 4])],
    outputs=[Tensor("scores", "float32", [1, 3])],
    preprocess=Preprocess(resize="stretch"),
    postprocess=Classification(scores="scores", activation="none", top=1, min_score=0.9),
    labels=LABELS,
)
QUARTER = Limits(min_margin=0.25)


def says(**scores):
    """A classifier's answer about one frame, best first."""
    return [Answer(label, score) for label, score in sorted(scores.items(), key=lambda item: -item[1])]


@pytest.mark.parametrize(
    ("reference", "candidate", "wanted"),
    [
        (says(cat=0.75, dog=0.25), says(cat=0.5, dog=0.5), Agreement(1, 1)),
        (says(cat=0.75, dog=0.25), says(dog=0.75, cat=0.25), Agreement(0, 1)),
        (says(cat=0.5, dog=0.25), says(dog=0.5, cat=0.25), Agreement(0, 1)),  # just the margin decides
        (says(cat=0.5, dog=0.375), says(dog=0.5, cat=0.25), Agreement(0, 0)),  # too close to call
        (says(cat=0.75, dog=0.25), [], Agreement(0, 1)),
        (says(cat=0.75), says(cat=0.75), Agreement(0, 0)),  # nobody was beaten
        ([], says(cat=0.75, dog=0.25), Agreement(0, 0)),
    ],
)
def test_a_frame_counts_if_the_reference_is_sure_and_agrees_if_the_best_label_is_the_same(reference, candidate, wanted):
    assert agree(CLASSIFIER, QUARTER, [reference], [candidate]) == wanted


def test_only_the_reference_decides_what_counts():
    sure, unsure = says(cat=0.75, dog=0.25), says(cat=0.5, dog=0.4)
    assert agree(CLASSIFIER, QUARTER, [sure, unsure], [unsure, sure]) == Agreement(1, 1)


def test_a_smaller_margin_counts_more_frames():
    frames = [says(cat=0.5 + lead, dog=0.5) for lead in (0.05, 0.15, 0.25, 0.35)]
    counted = [agree(CLASSIFIER, Limits(min_margin=m), frames, frames).decided for m in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert counted == [4, 3, 2, 1, 0]


def test_nothing_decided_is_no_agreement():
    assert Agreement(0, 0).share == 0
    assert Agreement(3, 4).share == 0.75


def test_a_missing_frame_is_an_error_and_not_an_agreement():
    with pytest.raises(ValueError, match="zip"):
        agree(CLASSIFIER, QUARTER, [says(cat=1.0, dog=0.0)], [])


def test_the_margin_is_that_of_the_best_two():
    assert is_decided(says(cat=0.75, dog=0.5, owl=0.0), 0.25)
    assert not is_decided(says(cat=0.75, dog=0.625, owl=0.0), 0.25)


def test_a_proof_decodes_two_labels_and_no_threshold_even_if_the_release_shows_one():
    decode = proof_decoder(CLASSIFIER)
    geometry = Geometry(CLASSIFIER.preprocess, (4, 4), (4, 4))
    found = decode({"scores": np.float32([[0.25, 0.5, 0.125]])}, geometry, 0.25)
    assert [answer.label for answer in found] == ["dog", "cat"]


# --- answers of a detector -----------------------------------------------------------------------------------------

DETECTOR = Interface(
    format=FORMAT,
    name="test",
    version=1,
    task="detection",
    inputs=[Tensor("image", "float32", [1, 3, 64, 64])],
    outputs=[Tensor("boxes", "float32", [1, 2, 4]), Tensor("scores", "float32", [1, 2, 3])],
    preprocess=Preprocess(resize="stretch"),
    postprocess=Detection(boxes="boxes", scores="scores", min_score=0.5),
    labels=LABELS,
)
HERE, NEAR, AWAY = (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.45), (0.5, 0.5, 1.0, 1.0)


def box(label, score, place=HERE):
    return Answer(label, score, place)


@pytest.mark.parametrize(
    ("reference", "candidate", "wanted"),
    [
        ([box("cat", 0.9)], [box("cat", 0.9)], Agreement(2, 2)),
        ([box("cat", 0.9)], [box("cat", 0.9, NEAR)], Agreement(2, 2)),
        ([box("cat", 0.9)], [box("cat", 0.3)], Agreement(1, 1)),  # found, if weakly; and too weak to ask back
        ([box("cat", 0.9)], [box("dog", 0.9)], Agreement(0, 2)),
        ([box("cat", 0.9)], [box("cat", 0.9, AWAY)], Agreement(0, 2)),
        ([box("cat", 0.9)], [], Agreement(0, 1)),  # missed
        ([], [box("cat", 0.9)], Agreement(0, 1)),  # invented
        ([box("cat", 0.9)], [box("cat", 0.9), box("dog", 0.9, AWAY)], Agreement(2, 3)),
        ([box("cat", 0.9)], [box("cat", 0.9), box("cat", 0.8, NEAR)], Agreement(2, 3)),  # found twice
        ([box("cat", 0.9), box("cat", 0.9, NEAR)], [box("cat", 0.9, NEAR), box("cat", 0.9)], Agreement(4, 4)),
        ([box("cat", 0.74)], [], Agreement(0, 0)),  # within the margin: either way is right
        ([], [box("cat", 0.74)], Agreement(0, 0)),
        ([], [], Agreement(0, 0)),
        ([box("cat", 0.75)], [], Agreement(0, 1)),
        ([Answer("cat", 0.9)], [Answer("cat", 0.9)], Agreement(0, 2)),  # a detector's answer without a box
    ],
)
def test_sure_boxes_of_either_side_need_a_twin_on_the_other(reference, candidate, wanted):
    assert agree(DETECTOR, QUARTER, [reference], [candidate]) == wanted


def test_boxes_are_compared_with_those_of_their_own_frame():
    assert agree(DETECTOR, QUARTER, [[box("cat", 0.9)], []], [[], [box("cat", 0.9)]]) == Agreement(0, 2)


def test_how_much_a_box_may_move():
    """A box of the same size that is shifted by a quarter of its width overlaps by 3/5."""
    stays, goes = (0.1249, 0.0, 0.6249, 0.5), (0.1251, 0.0, 0.6251, 0.5)
    assert pytest.approx(3 / 5) == SAME_BOX_IOU
    assert agree(DETECTOR, QUARTER, [[box("cat", 0.9)]], [[box("cat", 0.9, stays)]]) == Agreement(2, 2)
    assert agree(DETECTOR, QUARTER, [[box("cat", 0.9)]], [[box("cat", 0.9, goes)]]) == Agreement(0, 2)


def test_a_detectors_decoder_is_the_releases_own_with_the_margin_as_slack():
    outputs = {
        "boxes": np.float32([[HERE, AWAY]]),
        "scores": np.float32([[[0.875, 0, 0], [0, 0.375, 0]]]),
    }
    geometry = Geometry(DETECTOR.preprocess, (64, 64), (64, 64))
    assert [a.label for a in proof_decoder(DETECTOR)(outputs, geometry, 0.0)] == ["cat"]
    assert [a.label for a in proof_decoder(DETECTOR)(outputs, geometry, 0.25)] == ["cat", "dog"]
