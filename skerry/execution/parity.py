"""How far two runs of a model differ: in numbers (SQNR) and in what they say (agreement). Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from skerry.execution.ingraph import make_reader
from skerry.execution.processing import Decoder, iou
from skerry.manifest import Classification, Detection, InGraph, Interface, Limits
from skerry.wire import Answer

# Two boxes say the same if they overlap by this much: looser than an eye, tighter than any shifted frame allows.
SAME_BOX_IOU = 0.6

# The best that a comparison of floats is reported as: JSON has no infinity.
CLEAN_DB = 200.0


@dataclass
class Noise:
    """Signal-to-quantization-noise ratio, pooled over what was added: 10 log10(sum r^2 / sum (r-c)^2)."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray[np.generic], candidate: NDArray[np.generic]) -> None:
        r = np.asarray(reference, np.float64).reshape(-1)
        c = np.asarray(candidate, np.float64).reshape(-1)
        if r.shape != c.shape or not (np.isfinite(r).all() and np.isfinite(c).all()):
            self.noise = math.inf
            return
        self.signal += float(r @ r)
        self.noise += float((r - c) @ (r - c))

    def db(self) -> float:
        """Between -`CLEAN_DB` (no signal left, or not finite) and `CLEAN_DB` (bit for bit the same)."""
        if self.noise == 0.0:
            return CLEAN_DB
        if math.isinf(self.noise) or self.signal == 0.0:
            return -CLEAN_DB
        return max(-CLEAN_DB, min(CLEAN_DB, 10.0 * math.log10(self.signal / self.noise)))


@dataclass(frozen=True)
class Agreement:
    """How many decided answers there were, and how many of them are the same."""

    same: int
    decided: int

    @property
    def share(self) -> float:
        return self.same / self.decided if self.decided else 0.0


def proof_decoder(interface: Interface, graph: InGraph | None = None) -> Decoder:
    """The release's decoder, but listing enough to tell a margin: at least two labels, no threshold on them."""
    post = interface.postprocess
    if isinstance(post, Classification):
        post = msgspec.structs.replace(post, top=max(2, post.top), min_score=0.0)
    return make_reader(msgspec.structs.replace(interface, postprocess=post), graph)


def agree(
    interface: Interface, limits: Limits, reference: Sequence[Sequence[Answer]], candidate: Sequence[Sequence[Answer]]
) -> Agreement:
    """Compares answers frame by frame, as `proof_decoder` (with ``slack`` = the margin) gives them.

    Classification: a frame is decided if the reference's best label leads the second by the margin; the best labels
    must be the same. Detection: a box of either side is decided if its score clears the threshold by the margin; the
    other side must have a box of that label there, and each box is one answer's twin at most: a thing that is found
    three times is not found as before.
    """
    post, margin = interface.postprocess, limits.min_margin
    same = decided = 0
    for ours, theirs in zip(reference, candidate, strict=True):
        if isinstance(post, Detection):
            for found, others in ((ours, theirs), (theirs, ours)):
                sure = [a for a in found if a.score >= post.min_score + margin]
                decided += len(sure)
                same += _twins(sure, others)
        elif is_decided(ours, margin):
            decided += 1
            same += bool(theirs) and theirs[0].label == ours[0].label
    return Agreement(same, decided)


def is_decided(answers: Sequence[Answer], margin: float) -> bool:
    """Whether a classification's best label leads the second by the margin."""
    return len(answers) >= 2 and answers[0].score - answers[1].score >= margin


def _twins(sure: Sequence[Answer], others: Sequence[Answer]) -> int:
    """How many of the boxes have a twin of their own among the others; the best that is left, for each in turn."""
    free = [other for other in others if other.box is not None]
    found = 0
    for answer in sure:
        like = [index for index, other in enumerate(free) if other.label == answer.label]
        if answer.box is None or not like:
            continue
        overlap = iou(np.array(answer.box, np.float32), np.array([free[index].box for index in like], np.float32))
        if overlap.max() >= SAME_BOX_IOU:
            del free[like[int(overlap.argmax())]]
            found += 1
    return found
