"""Top-1 and AP50, counted on the whole path from file to answer."""

from __future__ import annotations

from pathlib import Path

import boxed
import numpy as np
import pytest
import tiny
from PIL import Image

from compiler.data import dataset
from compiler.data.annotations import Box
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from compiler.evaluation import accuracy, compare
from compiler.evaluation.accuracy import Comparison, Found, ap50, match
from compiler.evaluation.bootstrap import bootstrap_drop
from compiler.graph.onnxfile import Probe
from skerry.wire import Answer

NOWHERE = Sample("/nowhere.png", 0, "0" * 64)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Twenty frames of each colour, a folder each."""
    for channel, name in enumerate(tiny.COLOURS):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for seed in range(20):
            frame = tiny.coloured(channel, 100 * channel + seed)
            Image.fromarray(frame).save(tmp_path / "colours" / name / f"{seed}.png")
    return tmp_path / "colours"


def test_a_net_that_is_right_is_right_about_every_sample(colours: Path) -> None:
    interface = tiny.Tiny().interface()
    samples = dataset.read(colours, interface)
    run = compare.literally(tiny.model())

    said = list(accuracy.answers(run, interface, [s.sample for s in samples]))

    assert all(accuracy.is_right(found, sample) for found, sample in zip(said, samples, strict=True))


def test_a_net_that_takes_green_for_red_loses_just_those(colours: Path) -> None:
    interface = tiny.Tiny().interface()
    samples = dataset.read(colours, interface)
    where = [s.sample for s in samples]
    right = list(accuracy.answers(compare.literally(tiny.model()), interface, where))
    probe = Probe(tiny.model(), ["scores"], threads=1)

    def swapped(tensor: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: value[:, [1, 0, 2]] if tensor[0, 1].mean() > tensor[0, 0].mean() else value
            for name, value in probe(tensor)
        }

    wrong = list(accuracy.answers(swapped, interface, where))
    found = accuracy.compare(interface, samples, right, wrong)

    assert (found.metric, found.reference, found.lost, found.won) == ("top-1", 100.0, 20, 0)
    assert found.value == pytest.approx(100 * 40 / 60)
    assert found.drop.points == pytest.approx(100 / 3)
    assert found.drop.at_most > found.drop.points
    assert found.judge(5.0).needs_more is None
    back = accuracy.compare(interface, samples, wrong, right)
    assert (back.lost, back.won) == (0, 20)
    assert back.judge(0.5).holds


# AP50


def box(label: str, x: float, *, aside: bool = False) -> Box:
    return Box(label, (x, 0.2, x + 0.1, 0.4), aside)


def found(label: str, x: float, score: float) -> Answer:
    return Answer(label, score, (x, 0.2, x + 0.1, 0.4))


def image(*boxes: Box) -> Labelled:
    return Labelled(sample=NOWHERE, boxes=boxes)


def precision(samples: list[Labelled], said: list[list[Answer]], weights: list[float] | None = None) -> float:
    every = np.array(weights or [1.0] * len(samples))
    return ap50(match(samples, said), every)


def test_finding_everything_and_nothing_else_is_a_hundred() -> None:
    samples = [image(box("cat", 0.1), box("dog", 0.5)), image(box("cat", 0.3)), image()]
    said = [[found("cat", 0.1, 0.9), found("dog", 0.5, 0.8)], [found("cat", 0.31, 0.7)], []]

    assert precision(samples, said) == pytest.approx(100.0)


def test_the_curve_is_the_one_that_is_computed_by_hand() -> None:
    """Right, wrong, right of three: 1/3 at 1, 1/3 at 2/3, the last never."""
    samples = [image(box("cat", 0.1), box("cat", 0.5), box("cat", 0.8))]
    said = [[found("cat", 0.1, 0.9), found("cat", 0.3, 0.8), found("cat", 0.5, 0.7)]]

    assert precision(samples, said) == pytest.approx(100 * (1 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([found("cat", 0.1, 0.9), found("cat", 0.11, 0.8)], "found twice is found once"),
        ([found("cat", 0.1, 0.9), found("cat", 0.7, 0.95)], "what is not there, and surer"),
        ([found("cat", 0.16, 0.9)], "too far off"),
        ([found("dog", 0.1, 0.9)], "another label"),
        ([], "nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_right_costs(said: list[Answer], why: str) -> None:
    twice = why.startswith("found twice")
    assert precision([image(box("cat", 0.1))], [said]) == (
        pytest.approx(100.0) if twice else pytest.approx(50.0 if "surer" in why else 0.0)
    )


def test_what_was_set_aside_is_neither_missed_nor_wrong() -> None:
    samples = [image(box("cat", 0.1), box("cat", 0.6, aside=True))]

    assert precision(samples, [[found("cat", 0.1, 0.5)]]) == pytest.approx(100.0)
    assert precision(samples, [[found("cat", 0.6, 0.9), found("cat", 0.1, 0.5)]]) == pytest.approx(100.0)


def test_an_image_that_counts_twice_is_as_two_images() -> None:
    one, other = image(box("cat", 0.1)), image(box("cat", 0.5))
    hit, miss = [found("cat", 0.1, 0.9)], [found("cat", 0.9, 0.95)]

    weighted = precision([one, other], [hit, miss], [2.0, 1.0])
    absent = precision([one, other], [hit, miss], [1.0, 0.0])

    assert weighted == pytest.approx(precision([one, one, other], [hit, hit, miss]))
    assert absent == pytest.approx(100.0)


def test_a_class_that_no_drawn_image_has_counts_for_nothing() -> None:
    nothing = Found(np.zeros(0, int), np.zeros(0, bool), np.array([0, 0]))
    cat = Found(np.array([0]), np.array([True]), np.array([1, 0]))

    assert ap50({"dog": nothing, "cat": cat}, np.ones(2)) == pytest.approx(100.0)


def detections(seed: int, missed: float) -> tuple[list[Labelled], list[list[Answer]], list[list[Answer]]]:
    """Eighty images, and two models of which the second misses some more of what is there."""
    random = np.random.default_rng(seed)
    samples, base, ours = [], [], []
    for _ in range(80):
        places = [i * 0.12 for i in range(random.integers(1, 6))]
        samples.append(image(*(box("cat", x) for x in places)))
        said = [found("cat", x, float(random.uniform(0.4, 1.0))) for x in places if random.random() < 0.8]
        said.sort(key=lambda answer: -answer.score)
        base.append(said)
        ours.append([answer for answer in said if random.random() >= missed])
    return samples, base, ours


def boxes_compared(seed: int, missed: float) -> Comparison:
    samples, base, ours = detections(seed, missed)
    return accuracy._compare_boxes(samples, base, ours)


def test_the_paired_drop_of_ap50_is_bounded_tighter_than_either_alone() -> None:
    worse = boxes_compared(1, 0.05)
    same = boxes_compared(1, 0.0)

    assert 1.0 < worse.drop.points < 8.0
    assert worse.drop.points < worse.drop.at_most < worse.drop.points + 4.0
    assert (same.drop.points, same.drop.at_most) == (0.0, 0.0)
    assert worse.planned(320) < worse.planned(80)
    verdict = worse.judge(worse.drop.points + 0.5)
    assert not verdict.holds
    assert verdict.needs_more is not None


def test_two_detectors_are_told_apart_with_both_ends() -> None:
    described = boxed.Boxed().interface()
    samples, base, ours = detections(1, 0.05)

    found = accuracy.difference(described, samples, base, ours)
    same = accuracy.difference(described, samples, base, base)

    assert (found.metric, found.samples, found.needs_more) == ("AP50", 80, None)
    assert found.b - found.a == pytest.approx(found.points.value)
    assert found.points.low < found.points.value < found.points.high < 0
    assert (same.points.low, same.points.high, same.needs_more) == (0.0, 0.0, None)


def test_two_classifiers_are_told_apart_sample_by_sample() -> None:
    samples = [Labelled(sample=NOWHERE, label="red") for _ in range(60)]
    right, wrong = [Answer("red", 0.9)], [Answer("blue", 0.9)]

    found = accuracy.difference(
        tiny.Tiny().interface(), samples, [right] * 50 + [wrong] * 10, [right] * 52 + [wrong] * 8
    )

    assert (found.a, found.b) == (pytest.approx(500 / 6), pytest.approx(520 / 6))
    assert found.points.low < 0 < found.points.value < found.points.high
    assert found.needs_more is not None
    assert 30 < found.needs_more < 300


@pytest.mark.slow
def test_the_bound_of_the_ap50_drop_covers() -> None:
    """The truth is the mean of many draws; nineteen in twenty bounds should lie above it."""
    each = []
    for seed in range(120):
        samples, base, ours = detections(seed, 0.05)
        one, other = match(samples, base), match(samples, ours)
        each.append(bootstrap_drop(lambda w, one=one, other=other: ap50(one, w) - ap50(other, w), 80, 300))
    truth = float(np.mean([drop.points for drop in each]))

    assert np.mean([drop.at_most >= truth for drop in each]) >= 0.92
