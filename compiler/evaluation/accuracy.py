"""How right a model is about labelled samples, and how far another one falls behind it on the same samples.

The whole path answers, as on a device: the recipe's pre-processing, the model, the recipe's decoder. Top-1 is counted
sample by sample. AP50 is the area under the precision-recall curve with the precision made monotone (Everingham et al.,
"The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015), boxes matched at an overlap of one half,
averaged over classes; what each image adds is kept apart, so that a bootstrap can draw images anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.data.annotations import Box
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from compiler.evaluation import bootstrap, statistics
from compiler.evaluation.statistics import Drop, Interval, Verdict
from skerry.execution.backend import Tensors
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor, iou, make_decoder
from skerry.manifest import Classification, Interface
from skerry.wire import Answer

# Runs a model on one input tensor; the result is valid until the next run.
Run = Callable[[NDArray[np.generic]], Tensors]

_OVERLAP = 0.5
LEAST_SCORE = 0.05  # a curve wants the unsure boxes too; below this they only cost time
_PLANNED_Z = 1.6449 + 0.8416  # one-sided 95 %, and 80 % of the draws


def answers(run: Run, interface: Interface, samples: Sequence[Sample]) -> Iterator[list[Answer]]:
    """What a model says about each sample, unsure answers included.

    Raises:
        SourceError: a sample cannot be read.
        BackendError: the model does not run.
    """
    preprocess, decode, entry = Preprocessor(interface), make_decoder(_unsure(interface)), interface.inputs[0]
    tensor = np.zeros(entry.shape, entry.dtype)
    for frame in read_frames([(s.path, s.index) for s in samples]):
        geometry = preprocess(frame, tensor)
        yield decode(run(tensor), geometry)


def _unsure(interface: Interface) -> Interface:
    """The interface with thresholds that do not hide an answer from a metric."""
    post = interface.postprocess
    if isinstance(post, Classification):
        post = msgspec.structs.replace(post, top=1, min_score=0.0)
    else:
        post = msgspec.structs.replace(post, min_score=min(post.min_score, LEAST_SCORE))
    return msgspec.structs.replace(interface, postprocess=post)


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference on the same samples, in percent.

    Attributes:
        lost, won: samples that only the reference, or only the model, has right; None for a metric over images.
    """

    metric: str
    reference: float
    value: float
    drop: Drop
    lost: int | None = None
    won: int | None = None

    def judge(self, budget: float) -> Verdict:
        """Holds the drop's upper bound to a budget in points."""
        if self.lost is None or self.won is None:
            return bootstrap.judge_bootstrap(self.drop, budget)
        return statistics.judge_drop(self.drop, self.lost, self.won, budget)

    def planned(self, samples: int) -> float:
        """The bound in points that ``samples`` fresh samples will probably stay below."""
        if self.lost is None or self.won is None:
            return self.drop.points + _PLANNED_Z * self.drop.error * math.sqrt(self.drop.samples / samples)
        return statistics.planned_drop(self.lost, self.won, self.drop.samples, samples)


Answers = Sequence[Sequence[Answer]]


def compare(interface: Interface, samples: Sequence[Labelled], reference: Answers, model: Answers) -> Comparison:
    """Counts both against the truth, sample by sample."""
    if isinstance(interface.postprocess, Classification):
        return _compare_top_one(samples, reference, model)
    return _compare_boxes(samples, reference, model)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two models on the same samples, neither of which is the reference.

    Attributes:
        a, b: each one's metric, in percent.
        points: b's less a's.
        needs_more: as many more samples like these would tell the two apart; null if none would, or none are needed.
    """

    metric: str
    samples: int
    a: float
    b: float
    points: Interval
    needs_more: int | None


def difference(interface: Interface, samples: Sequence[Labelled], a: Answers, b: Answers) -> Difference:
    """Counts both against the truth, sample by sample."""
    if isinstance(interface.postprocess, Classification):
        return _top_one_apart(samples, a, b)
    return _boxes_apart(samples, a, b)


# --- top-1 ---------------------------------------------------------------------------------------------------------


def is_right(found: Sequence[Answer], sample: Labelled) -> bool:
    """Whether the best label is the true one."""
    return bool(found) and found[0].label == sample.label


def _rights(samples: Sequence[Labelled], found: Answers) -> NDArray[np.bool_]:
    return np.array([is_right(f, s) for f, s in zip(found, samples, strict=True)])


def _compare_top_one(samples: Sequence[Labelled], reference: Answers, model: Answers) -> Comparison:
    base, ours = _rights(samples, reference), _rights(samples, model)
    lost, won = int((base & ~ours).sum()), int((ours & ~base).sum())
    return Comparison(
        metric="top-1",
        reference=100 * float(base.mean()),
        value=100 * float(ours.mean()),
        drop=statistics.paired_drop(lost, won, len(samples)),
        lost=lost,
        won=won,
    )


def _top_one_apart(samples: Sequence[Labelled], a: Answers, b: Answers) -> Difference:
    one, other = _rights(samples, a), _rights(samples, b)
    lost, won = int((one & ~other).sum()), int((other & ~one).sum())
    return Difference(
        metric="top-1",
        samples=len(samples),
        a=100 * float(one.mean()),
        b=100 * float(other.mean()),
        points=statistics.paired_interval(lost, won, len(samples)),
        needs_more=statistics.paired_needs(lost, won, len(samples)),
    )


# --- AP50 ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The boxes of one class that a model found, best first, over all images.

    Attributes:
        image: which image each lies in [N].
        right: whether it is one that was to be found [N].
        wanted: how many were to be found in each image [images].
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wanted: NDArray[np.int64]

    def precision(self, weights: NDArray[np.float64]) -> float:
        """Average precision, 0..1, if each image counts ``weights`` [images] times; NaN if nothing was to be found."""
        wanted = float(np.sum(self.wanted * weights))
        if wanted == 0.0:
            return float("nan")
        counted = weights[self.image]
        right, total = np.cumsum(counted * self.right), np.cumsum(counted)
        precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        highest = np.maximum.accumulate(precision[::-1])[::-1]  # of all recalls from here on
        return float(np.sum(highest * counted * self.right)) / wanted


def match(samples: Sequence[Labelled], found: Answers) -> dict[str, Found]:
    """Matches boxes image by image, best first, each true box once."""
    labels = sorted({box.label for sample in samples for box in sample.boxes if not box.aside})
    return {label: _match_label(label, samples, found) for label in labels}


def _match_label(label: str, samples: Sequence[Labelled], found: Answers) -> Found:
    rows: list[tuple[float, int, bool]] = []
    wanted = []
    for image, (sample, said) in enumerate(zip(samples, found, strict=True)):
        truth = [box for box in sample.boxes if box.label == label]
        ours = [answer for answer in said if answer.label == label]
        rows += [(score, image, right) for score, right in _match_image(truth, ours)]
        wanted.append(sum(not box.aside for box in truth))
    rows.sort(key=lambda row: -row[0])
    return Found(
        image=np.array([row[1] for row in rows], np.int64),
        right=np.array([row[2] for row in rows], bool),
        wanted=np.array(wanted, np.int64),
    )


def _match_image(truth: Sequence[Box], said: Sequence[Answer]) -> Iterator[tuple[float, bool]]:
    """Score and whether it is right, for each box that counts; one that hits only what was set aside does not."""
    corners = np.array([box.box for box in truth], np.float32).reshape(-1, 4)
    aside = np.array([box.aside for box in truth], bool)
    free = ~aside
    for answer in said:
        assert answer.box is not None  # noqa: S101 - a detector's answers have boxes
        overlap = iou(np.array(answer.box, np.float32), corners)
        best = int(np.where(free, overlap, -1.0).argmax()) if len(truth) else -1
        if best >= 0 and free[best] and overlap[best] >= _OVERLAP:
            free[best] = False
            yield answer.score, True
        elif not (aside & (overlap >= _OVERLAP)).any():
            yield answer.score, False


def ap50(found: dict[str, Found], weights: NDArray[np.float64]) -> float:
    """Mean average precision over classes, in percent."""
    each = [value for of_class in found.values() if not np.isnan(value := of_class.precision(weights))]
    return 100 * float(np.mean(each)) if each else 0.0


def _compare_boxes(samples: Sequence[Labelled], reference: Answers, model: Answers) -> Comparison:
    base, ours, every = match(samples, reference), match(samples, model), np.ones(len(samples))
    return Comparison(
        metric="AP50",
        reference=ap50(base, every),
        value=ap50(ours, every),
        drop=bootstrap.bootstrap_drop(lambda weights: ap50(base, weights) - ap50(ours, weights), len(samples)),
    )


def _boxes_apart(samples: Sequence[Labelled], a: Answers, b: Answers) -> Difference:
    one, other, every = match(samples, a), match(samples, b), np.ones(len(samples))
    points = bootstrap.bootstrap_interval(lambda weights: ap50(other, weights) - ap50(one, weights), len(samples))
    return Difference(
        metric="AP50",
        samples=len(samples),
        a=ap50(one, every),
        b=ap50(other, every),
        points=points,
        needs_more=bootstrap.bootstrap_needs(points, len(samples)),
    )
