"""A recipe that feeds or reads a net otherwise than it was trained: no hop sees it, labelled samples do."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from compiler.data.annotations import Box
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from compiler.evaluation import misread
from skerry.manifest import FORMAT, Classification, Detection, Interface, Preprocess, Tensor
from skerry.wire import Answer

LABELS = ["cat", "dog", "bird", "fish", "newt"]


def view(**changes: object) -> Interface:
    fields = {
        "format": FORMAT,
        "name": "net",
        "version": 1,
        "task": "classification",
        "inputs": [Tensor("image", "float32", [1, 3, 8, 8])],
        "outputs": [Tensor("scores", "float32", [1, 5])],
        "preprocess": Preprocess(resize="stretch", mean=(0.5,), std=(0.25,)),
        "postprocess": Classification(scores="scores"),
        "labels": LABELS,
    }
    return Interface(**{**fields, **changes})


def samples(each: int = 20) -> list[Labelled]:
    paths = [(f"{label}/{n}.png", label) for label in LABELS for n in range(each)]
    return [Labelled(sample=Sample(path, 0, path), label=label) for path, label in paths]


class Oracle:
    """A net that is right so often, and otherwise says anything; ``labels`` is the order that it was trained with."""

    def __init__(self, share: float, labels: list[str] = LABELS, better: str = "", seed: int = 3) -> None:
        self._share, self._labels, self._better, self._seed = share, labels, better, seed
        self.asked = 0

    def __call__(self, interface: Interface) -> list[list[Answer]]:
        self.asked += 1
        random, found = np.random.default_rng(self._seed), []
        share = 0.95 if self._better and self._better == interface.preprocess.color else self._share
        for sample in samples():
            known = random.random() < share
            index = self._labels.index(sample.label or "") if known else int(random.integers(len(LABELS)))
            found.append([Answer(label=interface.labels[index], score=0.9)])
        return found


def test_a_sound_net_raises_no_doubt_even_a_mediocre_one() -> None:
    for share in (0.2, 0.5, 0.99):
        assert misread.doubt(view(), samples(), Oracle(share)) is None


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_two_exchanged_labels_are_named(share: float) -> None:
    trained = ["cat", "bird", "dog", "fish", "newt"]

    why = misread.doubt(view(), samples(), Oracle(share, trained))

    assert why is not None
    assert "'bird' are called 'dog', 'dog' are called 'bird'" in why
    assert "cat" not in why


def test_labels_that_are_one_line_off_are_all_named() -> None:
    why = misread.doubt(view(), samples(), Oracle(0.9, [*LABELS[1:], LABELS[0]]))

    assert why is not None
    assert "the labels are not in the order of the net's scores" in why
    assert "and 1 more" in why


def test_a_class_that_is_mistaken_for_another_is_not_exchanged_with_it() -> None:
    def answer(_interface: Interface) -> list[list[Answer]]:
        return [[Answer(label="dog" if s.label == "cat" else s.label or "", score=0.9)] for s in samples()]

    assert misread.doubt(view(), samples(), answer) is None


def test_a_net_that_says_one_thing_is_no_better_than_guessing() -> None:
    def answer(_interface: Interface) -> list[list[Answer]]:
        return [[Answer(label="fish", score=0.9)] for _ in samples()]

    why = misread.doubt(view(), samples(), answer)

    assert why is not None
    assert "fp32 itself is no better than guessing: it names 20.0% rightly" in why


def test_swapped_channels_are_found_by_swapping_them_back() -> None:
    why = misread.doubt(view(), samples(), Oracle(0.5, better="bgr"))

    assert why is not None
    assert 'with color = "bgr"; correct the recipe' in why


def test_a_reading_that_is_hardly_better_is_let_pass() -> None:
    assert misread.doubt(view(), samples(), Oracle(0.93, better="bgr")) is None


def test_few_samples_say_nothing() -> None:
    oracle = Oracle(0.0)

    assert misread.doubt(view(), samples()[: misread.MIN_ASKED - 1], oracle) is None
    assert oracle.asked == 0


def test_every_other_reading_is_another_and_grey_has_no_colours() -> None:
    colour, grey = view(), view(preprocess=Preprocess(resize="stretch", color="gray", mean=(0.3,), std=(0.2,)))

    assert all(other != colour for _, other in misread.readings(colour))
    assert {"color", "mean"}.isdisjoint(w.split(" ")[0] for w, _ in misread.readings(grey) if w.startswith("color"))
    assert all(other.preprocess.color == "gray" for _, other in misread.readings(grey))


# Boxes


def boxed(count: int = 32) -> list[Labelled]:
    box = Box("cat", (0.2, 0.2, 0.4, 0.6))
    return [Labelled(sample=Sample(f"{n}.png", 0, str(n)), boxes=(box,)) for n in range(count)]


def detector(box_format: str) -> Interface:
    post = Detection(boxes="boxes", scores="scores", box_format=box_format)  # type: ignore[arg-type]
    return view(task="detection", postprocess=post)


def read_as(right: str, *, ever: bool = True) -> misread.Callable:
    def answer(interface: Interface) -> list[list[Answer]]:
        post = interface.postprocess
        found = ever and isinstance(post, Detection) and post.box_format == right and post.box_units == "fraction"
        box = (0.2, 0.2, 0.4, 0.6) if found else (0.9, 0.9, 1.0, 1.0)
        return [[Answer(label="cat", score=0.9, box=box)] for _ in boxed()]

    return answer


def test_boxes_that_are_read_otherwise_are_told_how() -> None:
    assert misread.doubt(detector("xyxy"), boxed(), read_as("xyxy")) is None
    why = misread.doubt(detector("xyxy"), boxed(), read_as("cxcywh"))

    assert why is not None
    assert 'AP50 of fp32 is 0.0 % on 32 samples of --eval, and 100.0 % with box_format = "cxcywh"' in why


def test_a_detector_that_finds_nothing_in_any_reading_is_told() -> None:
    why = misread.doubt(detector("xyxy"), boxed(), read_as("xyxy", ever=False))

    assert why is not None
    assert "finds next to nothing" in why


def test_no_more_is_asked_than_it_takes_and_from_all_classes() -> None:
    many = samples(200)

    chosen = misread.asked(view(), many)

    assert len(chosen) == misread.MAX_ASKED
    assert {s.label for s in chosen} == set(LABELS)
    assert len(misread.asked(detector("xyxy"), boxed(100))) == misread.MAX_IMAGES
    assert msgspec.to_builtins(chosen) == msgspec.to_builtins(misread.asked(view(), many[::-1]))
