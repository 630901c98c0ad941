"""From the net's outputs to answers, as `skerry.execution.processing`'s decoder gives them, for any batch."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from compiler.ingraph.drawing import Drawing
from compiler.ingraph.suppress import LOWEST, Candidates, Suppression, draw_suppression, locate
from skerry.execution.processing import Geometry
from skerry.manifest import (
    ANSWER_BOXES,
    ANSWER_CLASSES,
    ANSWER_COUNT,
    ANSWER_MISSED,
    ANSWER_SCORES,
    Classification,
    Detection,
    Interface,
)

_CORNER, _SIZE = (0, 2), (2, 4)  # the two halves of a box


def draw_answers(
    d: Drawing, interface: Interface, size: tuple[int, int] | None, slack: float, suppression: Suppression
) -> None:
    """Draws the path from the interface's outputs to its `answer_tensors`.

    Args:
        size: of the frames, if the graph takes frames: boxes are then fractions of these, else of the input.
        slack: lowers the threshold of detections by so much; whoever reads the answers cuts the rest off.
    """
    post = interface.postprocess
    if isinstance(post, Classification):
        _draw_labels(d, post, interface)
    else:
        _draw_boxes(d, post, interface, size, np.float32(post.min_score - slack), suppression)


def _draw_labels(d: Drawing, post: Classification, interface: Interface) -> None:
    (_, most), _ = (t.shape for t in interface.answer_tensors())
    rows = d.add("Reshape", _as_float(d, post.scores), d.whole(*_batch(interface, post.scores, 2), -1))
    activated = _activated(d, rows, post.activation)
    scores, classes = d.several("TopK", [activated, d.whole(most)], 2, axis=-1)
    d.name(scores, ANSWER_SCORES)
    d.name(classes, ANSWER_CLASSES)


def _draw_boxes(
    d: Drawing,
    post: Detection,
    interface: Interface,
    size: tuple[int, int] | None,
    floor: np.float32,
    suppression: Suppression,
) -> None:
    target = interface.input_size()
    found = _candidates(d, post, interface)
    kept = draw_suppression(d, found, post, floor, suppression)
    most = interface.answer_tensors()[0].shape[1]
    scores, places = d.several("TopK", [kept.scores, d.whole(most)], 2, axis=-1)
    present = d.add("GreaterOrEqual", scores, d.constant(LOWEST / 2))
    if kept.places is not None:
        places = d.add("GatherElements", kept.places, places, axis=-1)
    boxes, classes = locate(d, found, places)
    boxes = _as_fractions(d, boxes, target, Geometry(interface.preprocess, size, target) if size else None)
    there = d.add("Unsqueeze", present, d.whole(-1))
    d.name(d.add("Where", there, boxes, d.constant(0.0)), ANSWER_BOXES)
    d.name(d.add("Where", present, scores, d.constant(0.0)), ANSWER_SCORES)
    d.name(d.add("Where", present, classes, d.constant(0, np.int64)), ANSWER_CLASSES)
    counted = d.add("ReduceSum", d.add("Cast", present, to=TensorProto.FLOAT), d.whole(1), keepdims=0)
    count = d.name(d.add("Cast", counted, to=TensorProto.INT64), ANSWER_COUNT)
    d.name(kept.missed or d.add("Sub", count, count), ANSWER_MISSED)


def _candidates(d: Drawing, post: Detection, interface: Interface) -> Candidates:
    shape = next(t.shape for t in interface.outputs if t.name == post.scores)
    count, classes = math.prod(shape[:-1]), shape[-1]
    scores = d.add("Reshape", _as_float(d, post.scores), d.whole(*_batch(interface, post.scores, 3), -1, classes))
    scores = _activated(d, scores, post.activation)
    foreground = [index for index in range(classes) if index != post.background]
    by_class = d.add("Transpose", scores, perm=[0, 2, 1])
    if post.background is not None:
        by_class = d.add("Gather", by_class, d.whole(*foreground), axis=1)
    boxes = d.add("Reshape", _as_float(d, post.boxes), d.whole(*_batch(interface, post.boxes, 3), -1, 4))
    return Candidates(_corners(d, boxes, post, interface.input_size()), by_class, count, foreground)


def _corners(d: Drawing, boxes: str, post: Detection, target: tuple[int, int]) -> str:
    """Boxes [N, count, 4] as corners in input pixels."""
    if post.box_format == "cxcywh":
        middle, size = d.cut(boxes, -1, *_CORNER), d.cut(boxes, -1, *_SIZE)
        half = d.add("Mul", size, d.constant(0.5))
        boxes = d.add("Concat", d.add("Sub", middle, half), d.add("Add", middle, half), axis=-1)
    if post.box_units == "fraction":
        boxes = d.add("Mul", boxes, d.constant([target[1], target[0]] * 2))
    return boxes


def _as_fractions(d: Drawing, boxes: str, target: tuple[int, int], geometry: Geometry | None) -> str:
    """Of the frame, cut off at its border; or of the input, where the frame is not known."""
    if geometry is None:
        return d.add("Div", boxes, d.constant([target[1], target[0]] * 2))
    shift = d.constant([geometry.left, geometry.top] * 2)
    size = d.constant([geometry.scaled[1], geometry.scaled[0]] * 2)
    return d.add("Clip", d.add("Div", d.add("Sub", boxes, shift), size), d.constant(0.0), d.constant(1.0))


def _as_float(d: Drawing, value: str) -> str:
    """A half-precision net's output as fp32; nothing where it is so already, once the graph is optimized."""
    return d.add("Cast", value, to=TensorProto.FLOAT)


def _batch(interface: Interface, output: str, rank: int) -> tuple[int]:
    """The first number of a Reshape: the batch as it is (0), or 1 for an output that has no such axis."""
    shape = next(t.shape for t in interface.outputs if t.name == output)
    return (0,) if len(shape) >= rank and shape[0] == 1 else (1,)


def _activated(d: Drawing, values: str, activation: str) -> str:
    if activation == "softmax":
        return d.add("Softmax", values, axis=-1)
    return d.add("Sigmoid", values) if activation == "sigmoid" else values
