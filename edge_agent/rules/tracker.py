"""Boxes become tracks: which box of this frame is which thing of the frames before.

Two rounds as in ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV
2022): sure boxes first, then unsure ones for the tracks that are left, so that a thing whose score sinks behind
another one keeps its number. A third round is for what moves by more than its own size between two frames: boxes are
made larger by what a track may have moved (after Yang et al., "Hard to Track Objects with Irregular Motions and Similar
Appearances? Make It Easier by Buffering the Matching Space", WACV 2023).

A box is compared with where the track should be by now: a Kalman filter of constant velocity whose step is the time
between two frames, since the frames that a busy device answers are not evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import TrackingConfig
from edge_agent.rules.assignment import pairs

Array = NDArray[np.float64]
_MIN_IOU = 0.1
_OTHER_LABEL = 0.3  # a box of another label must overlap by so much more: detectors take cars for trucks
_LONGEST_STEP_S = 1.0  # no velocity holds for longer
_NOISE = 0.05  # in box sides: the standard deviation of what a detector says
_PUSH = 0.5  # in box sides a second squared: how suddenly things change their velocity
_SPEED = 2.0  # in box sides a second: how fast a thing may be that was seen once
_REACH = 2.0  # in standard deviations of a track's place: how much larger boxes are for the last round
_FORGET = 0.9  # of a track's votes for a label, from one sight to the next


@dataclass(frozen=True)
class Box:
    """What a model says about a part of a frame: ``corners`` are (x0, y0, x1, y1), as fractions of it."""

    label: str
    score: float
    corners: tuple[float, float, float, float]


class Tracker:
    """The things in front of one camera.

    A thing has a number from the second frame in a row that shows it: a flicker never gets one. It keeps it while it is
    out of sight for less than ``lost_s``, counted from the first frame that does not show it: a camera that was away
    comes back to the things that it left, unless it was away for ``blind_s``.

    Args:
        number: gives the next number.

    Attributes:
        config: may be replaced between two frames.
        begun: those that the last frame gave a number: it, when they were first seen, and the box that showed them.
    """

    def __init__(self, config: TrackingConfig, number: Callable[[], int]) -> None:
        self.config, self._number = config, number
        self.begun: list[tuple[int, float, Box]] = []
        self._last_s: float | None = None
        self._first: list[tuple[float, Box]] = []
        self._numbers: list[int | None] = []
        self._votes: list[dict[str, float]] = []
        self._place, self._speed = np.zeros((0, 4)), np.zeros((0, 4))  # (x, y, width, height), and a second's change
        self._doubt = np.zeros((3, 0))  # covariance of place and speed, in box sides: [0, 0], [0, 1], [1, 1]
        self._missed_s = np.zeros(0)  # the first frame that did not show it; NaN: the last one did

    def update(self, time_s: float, boxes: Sequence[Box]) -> list[int | None]:
        """The number of the thing that each box shows; None if it is not sure yet that it is one.

        Args:
            time_s: when the frame was captured; never less than before.
        """
        self.begun = []
        self._advance(time_s)
        corners = np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)
        scores = np.array([box.score for box in boxes])
        places = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        sure = scores >= self.config.start_score
        matched = self._match(places, [box.label for box in boxes], sure, scores >= self.config.keep_score)
        self._correct(matched, places, boxes)
        numbers: list[int | None] = [None] * len(boxes)
        for track, box in matched.items():
            numbers[box] = self._numbers[track]
        self._forget(time_s, matched)
        new = (scores >= self.config.start_score) & (places[:, 2:] > 0).all(axis=1)
        new[list(matched.values())] = False
        self._begin(time_s, np.nonzero(new)[0], places, boxes)
        return numbers

    def label(self, number: int) -> str:
        """What the thing is, by the votes of its last sights."""
        votes = self._votes[self._numbers.index(number)]
        return max(votes, key=votes.__getitem__)

    @property
    def numbers(self) -> set[int]:
        """Of the things that are there, in sight or not."""
        return {number for number in self._numbers if number is not None}

    def _advance(self, time_s: float) -> None:
        """Moves every track to where it should be by now."""
        gap_s = max(0.0, time_s - self._last_s) if self._last_s is not None else 0.0
        self._last_s = time_s
        if gap_s >= self.config.blind_s:
            self._keep(np.zeros(len(self._numbers), np.bool_))
        step = min(gap_s, _LONGEST_STEP_S)
        self._place = self._place + self._speed * step
        self._place[:, 2:] = np.maximum(self._place[:, 2:], 1e-4)
        a, b, c = self._doubt
        push = _PUSH**2
        self._doubt = np.stack(
            [
                a + 2 * b * step + c * step**2 + push * step**4 / 4,
                b + c * step + push * step**3 / 2,
                c + push * step**2,
            ]
        )

    def _match(
        self, places: Array, labels: list[str], sure: NDArray[np.bool_], kept: NDArray[np.bool_]
    ) -> dict[int, int]:
        """Which track is which box: sure boxes, unsure ones, sure ones farther away; each round has what is left."""
        ours = [max(votes, key=votes.__getitem__) for votes in self._votes]
        other = np.array(ours, object)[:, None] != np.array(labels, object)
        near = _overlap(self._place, places) - _OTHER_LABEL * other
        matched: dict[int, int] = {}
        free, sure = np.ones(len(ours), np.bool_), sure.copy()
        for group, far in ((sure, False), (kept & ~sure, False), (sure, True)):
            left = free[:, None] & group
            if not left.any():
                continue
            if far:
                reach = _REACH * np.sqrt(self._doubt[0])[:, None, None]
                near = _overlap(self._place, places, reach) - _OTHER_LABEL * other
            found = pairs(np.where(left & (near >= _MIN_IOU), near, 0.0))
            matched.update(found)
            free[[track for track, _ in found]] = False
            group[[box for _, box in found]] = False  # so that the last round has what the first one left
        return matched

    def _correct(self, matched: dict[int, int], places: Array, boxes: Sequence[Box]) -> None:
        """Takes in what was seen."""
        tracks, seen = list(matched), list(matched.values())
        a, b, c = self._doubt[:, tracks]
        gain, gain_speed = a / (a + _NOISE**2), b / (a + _NOISE**2)
        miss = places[seen] - self._place[tracks]
        self._place[tracks] += gain[:, None] * miss
        self._speed[tracks] += gain_speed[:, None] * miss
        self._doubt[:, tracks] = (1 - gain) * a, (1 - gain) * b, c - gain_speed * b
        self._missed_s[tracks] = np.nan
        for track, box in matched.items():
            votes = {label: vote * _FORGET for label, vote in self._votes[track].items()}
            votes[boxes[box].label] = votes.get(boxes[box].label, 0.0) + boxes[box].score
            self._votes[track] = votes
            if self._numbers[track] is None:
                number = self._numbers[track] = self._number()
                self.begun.append((number, *self._first[track]))

    def _forget(self, time_s: float, matched: dict[int, int]) -> None:
        """Ends tracks that were out of sight for too long, and those that only one frame showed."""
        unsure = np.array([number is None for number in self._numbers], np.bool_)
        seen = np.zeros(len(self._numbers), np.bool_)
        seen[list(matched)] = True
        self._missed_s = np.where(~seen & np.isnan(self._missed_s), time_s, self._missed_s)
        self._keep(seen | (~unsure & (time_s - self._missed_s < self.config.lost_s)))

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        if kept.all():
            return
        self._numbers = [number for number, keep in zip(self._numbers, kept, strict=True) if keep]
        self._votes = [votes for votes, keep in zip(self._votes, kept, strict=True) if keep]
        self._first = [first for first, keep in zip(self._first, kept, strict=True) if keep]
        self._place, self._speed, self._missed_s = self._place[kept], self._speed[kept], self._missed_s[kept]
        self._doubt = self._doubt[:, kept]

    def _begin(self, time_s: float, new: NDArray[np.int64], places: Array, boxes: Sequence[Box]) -> None:
        if not new.size:
            return
        self._numbers += [None] * len(new)
        self._first += [(time_s, boxes[box]) for box in new]
        self._votes += [{boxes[box].label: boxes[box].score} for box in new]
        self._place = np.concatenate([self._place, places[new]])
        self._speed = np.concatenate([self._speed, np.zeros((len(new), 4))])
        self._missed_s = np.concatenate([self._missed_s, np.full(len(new), np.nan)])
        first = np.array([[_NOISE**2], [0.0], [_SPEED**2]])
        self._doubt = np.concatenate([self._doubt, np.repeat(first, len(new), axis=1)], axis=1)


def _overlap(ours: Array, theirs: Array, grown: Array | float = 0.0) -> Array:
    """Intersection over union of each pair, [ours, theirs], of boxes as (x, y, width, height).

    Args:
        grown: by how much of its sides each box is made larger on each side, [ours, 1, 1].
    """
    half, half_theirs = ours[:, None, 2:] * (0.5 + grown), theirs[None, :, 2:] * (0.5 + grown)
    low = np.maximum(ours[:, None, :2] - half, theirs[None, :, :2] - half_theirs)
    high = np.minimum(ours[:, None, :2] + half, theirs[None, :, :2] + half_theirs)
    common = np.maximum(high - low, 0.0).prod(axis=2)
    either = 4.0 * (half.prod(axis=2) + half_theirs.prod(axis=2)) - common
    return np.asarray(common / np.maximum(either, 1e-12))
