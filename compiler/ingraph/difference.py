"""How far a graph's own processing is from the runtime's, on real frames: the bar is boxes within a pixel. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from skerry.execution.parity import Noise
from skerry.manifest import Classification, Postprocess
from skerry.wire import Answer

# Answers whose score lies this near to the threshold may come or go with a grey level of rounding.
SAME_SCORE = 0.01
_FAR_PX = 20.0  # boxes of one label that are further apart are two boxes


@dataclass
class Difference:
    """Pooled over the frames.

    Attributes:
        input: the net's input tensor, by both ways.
        answers: how many the runtime's own path gave.
        alone: answers of either side without one of the same label near it on the other, `SAME_SCORE` or more over
            the threshold, or over the last of a list that is full.
        box_px: the largest distance between edges of two boxes that are the same, in pixels of the frame.
        score: the largest difference of their scores.
    """

    frames: int = 0
    answers: int = 0
    alone: int = 0
    box_px: float = 0.0
    score: float = 0.0
    input: Noise = field(default_factory=Noise)

    def add(self, ours: Sequence[Answer], theirs: Sequence[Answer], size: tuple[int, int], post: Postprocess) -> None:
        """Adds a frame's answers: the runtime's (``ours``) and the graph's."""
        self.frames += 1
        self.answers += len(ours)
        left, alone = list(theirs), []
        for answer in ours:
            apart, twin = _nearest(answer, left, size)
            if twin is None:
                alone.append(answer)
                continue
            left.remove(twin)
            self.box_px = max(self.box_px, apart)
            self.score = max(self.score, abs(answer.score - twin.score))
        self.alone += _clear(alone, theirs, post) + _clear(left, ours, post)


def _clear(alone: Sequence[Answer], others: Sequence[Answer], post: Postprocess) -> int:
    """How many of one side's answers the other must have had: not those at its threshold, or at a full list's end."""
    most = post.top if isinstance(post, Classification) else post.max_boxes
    least = others[-1].score if len(others) >= most else post.min_score
    return sum(answer.score >= least + SAME_SCORE for answer in alone)


def _nearest(answer: Answer, others: Iterable[Answer], size: tuple[int, int]) -> tuple[float, Answer | None]:
    pairs = [(edges_px(answer, other, size), other) for other in others if other.label == answer.label]
    apart, twin = min(pairs, key=lambda pair: pair[0], default=(math.inf, None))
    return (apart, twin) if apart <= _FAR_PX else (math.inf, None)


def edges_px(one: Answer, other: Answer, size: tuple[int, int]) -> float:
    """The largest distance between corresponding edges of two boxes, in pixels of a frame [height, width]."""
    if one.box is None or other.box is None:
        return 0.0
    sides = np.array([size[1], size[0]] * 2)
    return float(np.abs((np.array(one.box) - np.array(other.box)) * sides).max())
