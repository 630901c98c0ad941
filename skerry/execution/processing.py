"""From a frame to the input tensor, and from output tensors to answers, as a manifest describes it.

Pure but for the buffers that they own; one thread uses one instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skerry.execution.resize import Float, Resizer
from skerry.manifest import Classification, Detection, Interface, Preprocess
from skerry.wire import Answer

Frame = NDArray[np.uint8]  # [height, width, 3], RGB
Outputs = Mapping[str, NDArray[np.generic]]

# Rec. 601 luma, as Pillow's "L" and OpenCV's COLOR_RGB2GRAY.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Geometry:
    """How a frame of one size lies in the input: ``scaled`` is the whole frame's size there, at ``(top, left)``.

    With "crop", top and left are negative or zero: the input shows a part of the scaled frame.
    """

    def __init__(self, spec: Preprocess, source: tuple[int, int], target: tuple[int, int]) -> None:
        self.source, self.target = source, target
        if spec.resize == "stretch":
            self.scaled = target
        elif spec.resize == "letterbox":
            ratio = min(target[0] / source[0], target[1] / source[1])
            self.scaled = max(1, round(source[0] * ratio)), max(1, round(source[1] * ratio))
        else:
            self.scaled = _short_side(source, spec.resize_to or min(target))
        place = _centred_crop if spec.resize == "crop" else _centred
        self.top, self.left = (place(s, t) for s, t in zip(self.scaled, target, strict=True))

    def inside(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of the scaled frame's part that the input shows, in scaled coordinates."""
        top, left = max(0, -self.top), max(0, -self.left)
        height = min(self.scaled[0] - top, self.target[0] - max(0, self.top))
        width = min(self.scaled[1] - left, self.target[1] - max(0, self.left))
        return top, left, height, width

    def to_frame(self, boxes: Float) -> Float:
        """Boxes [N, 4] (x0, y0, x1, y1) from input pixels to fractions of the frame, clipped to it."""
        shift = np.array([self.left, self.top, self.left, self.top], np.float32)
        size = np.array([self.scaled[1], self.scaled[0]] * 2, np.float32)
        return np.asarray(np.clip((boxes - shift) / size, 0.0, 1.0), np.float32)


def _short_side(source: tuple[int, int], short: int) -> tuple[int, int]:
    """The size with its short side brought to ``short``; the other is cut off to whole pixels, as torchvision does."""
    height, width = source
    if height <= width:
        return short, max(1, int(short * width / height))
    return max(1, int(short * height / width)), short


def _centred(size: int, target: int) -> int:
    """Where a smaller thing begins in a larger one; an odd pixel lies behind it."""
    return (target - size) // 2


def _centred_crop(size: int, target: int) -> int:
    """Where the scaled frame begins; half a pixel goes to the even side, as in torchvision's CenterCrop."""
    return -round((size - target) / 2) if size >= target else _centred(size, target)


class Preprocessor:
    """Writes a frame into an input tensor. Keeps the resizer of the last frame size; a camera has one."""

    def __init__(self, interface: Interface) -> None:
        self._spec = interface.preprocess
        self._target = interface.input_size()
        self._gray = self._spec.color == "gray"
        channels = 1 if self._gray else 3
        mean = np.broadcast_to(np.array(self._spec.mean, np.float32), (channels,))
        std = np.broadcast_to(np.array(self._spec.std, np.float32), (channels,))
        self._gain = (self._spec.scale / std).reshape(channels, 1, 1).astype(np.float32)
        self._offset = (-mean / std).reshape(channels, 1, 1).astype(np.float32)
        self._plain_integers = interface.inputs[0].dtype == "uint8"
        self._resizer: Resizer | None = None
        self.geometry: Geometry | None = None

    def __call__(self, frame: Frame, tensor: NDArray[np.generic]) -> Geometry:
        """Fills ``tensor`` (the shape of the manifest's input, batch 1) and returns how the frame lies in it."""
        geometry, resizer = self._for(frame.shape[0], frame.shape[1])
        planes = resizer(frame)
        if self._spec.color == "bgr":
            planes = planes[::-1]
        elif self._gray:
            planes = np.tensordot(LUMA, planes, axes=1)[None]
        _, _, height, width = geometry.inside()
        top, left = max(0, geometry.top), max(0, geometry.left)
        out = tensor[0] if self._spec.layout == "nchw" else np.moveaxis(tensor[0], -1, 0)
        if (height, width) != self._target:
            out[:] = self._value(np.full((len(out), 1, 1), self._spec.pad_value, np.float32))
        part = out[:, top : top + height, left : left + width]
        part[:] = self._value(planes)
        return geometry

    def _value(self, planes: Float) -> NDArray[np.generic]:
        if self._plain_integers:
            return np.rint(planes).astype(np.uint8)
        return planes * self._gain + self._offset

    def _for(self, height: int, width: int) -> tuple[Geometry, Resizer]:
        if self.geometry is None or self._resizer is None or self.geometry.source != (height, width):
            self.geometry = Geometry(self._spec, (height, width), self._target)
            self._resizer = Resizer(
                (height, width),
                self.geometry.scaled,
                self.geometry.inside(),
                self._spec.interpolation,
                self._spec.antialias,
            )
        return self.geometry, self._resizer


class Decoder(Protocol):
    """From outputs to answers, highest score first. ``slack`` lowers every threshold by so much."""

    def __call__(self, outputs: Outputs, geometry: Geometry, slack: float = 0.0) -> list[Answer]: ...


def make_decoder(interface: Interface) -> Decoder:
    """The decoder that the manifest's post-processing describes."""
    post = interface.postprocess
    if isinstance(post, Classification):
        return _Classifier(post, interface.labels)
    return _Detector(post, interface.labels)


class _Classifier:
    def __init__(self, post: Classification, labels: list[str]) -> None:
        self._post, self._labels = post, labels

    def __call__(self, outputs: Outputs, geometry: Geometry, slack: float = 0.0) -> list[Answer]:  # noqa: ARG002
        scores = activate(np.asarray(outputs[self._post.scores], np.float32).reshape(-1), self._post.activation)
        best = np.argsort(-scores, kind="stable")[: self._post.top]
        return [
            Answer(name(self._labels, int(i)), float(scores[i]))
            for i in best
            if scores[i] >= self._post.min_score - slack
        ]


class _Detector:
    def __init__(self, post: Detection, labels: list[str]) -> None:
        self._post, self._labels = post, labels

    def __call__(self, outputs: Outputs, geometry: Geometry, slack: float = 0.0) -> list[Answer]:
        post = self._post
        scores = activate(np.asarray(outputs[post.scores], np.float32).reshape(-1, len(self._labels)), post.activation)
        boxes = corners(np.asarray(outputs[post.boxes], np.float32).reshape(-1, 4), post, geometry.target)
        found: list[Answer] = []
        for index, label in enumerate(self._labels):
            if index == post.background:
                continue
            strong = np.flatnonzero(scores[:, index] >= post.min_score - slack)
            kept = strong[suppress(boxes[strong], scores[strong, index], post.iou_threshold, post.max_boxes)]
            for box, score in zip(geometry.to_frame(boxes[kept]), scores[kept, index], strict=True):
                x0, y0, x1, y1 = (float(v) for v in box)
                found.append(Answer(label, float(score), (x0, y0, x1, y1)))
        found.sort(key=lambda answer: -answer.score)
        return found[: post.max_boxes]


def name(labels: list[str], index: int) -> str:
    """The label of a class; a class beyond the list is named by its number rather than lost."""
    return labels[index] if index < len(labels) else f"class {index}"


def activate(values: Float, activation: str) -> Float:
    """Scores in 0..1 along the last axis."""
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if activation == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)
    return values


def corners(boxes: Float, post: Detection, target: tuple[int, int]) -> Float:
    """Boxes [N, 4] as corners (x0, y0, x1, y1) in input pixels."""
    if post.box_format == "cxcywh":
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    if post.box_units == "fraction":
        boxes = boxes * np.array([target[1], target[0]] * 2, np.float32)
    return boxes


def iou(box: Float, boxes: Float) -> Float:
    """Intersection over union of one box with each of ``boxes`` [N, 4], corners; 0 where both are empty."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def suppress(boxes: Float, scores: Float, threshold: float, most: int | None = None) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the ``most`` best that stay, highest score first."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) != most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[iou(boxes[best], boxes[order]) <= threshold]
    return np.array(kept, np.int64)
