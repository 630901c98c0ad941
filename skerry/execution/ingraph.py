"""The runtime's side of a graph that takes frames and gives answers: what is left to do is to copy and to read.

Which of the two a variant's graph does stands in its `InGraph`; the functions here choose accordingly, and the rest of
the runtime does not ask.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skerry.errors import BackendError
from skerry.execution.processing import Decoder, Frame, Geometry, Outputs, Preprocessor, make_decoder, name
from skerry.manifest import (
    ANSWER_BOXES,
    ANSWER_CLASSES,
    ANSWER_COUNT,
    ANSWER_MISSED,
    ANSWER_SCORES,
    Classification,
    InGraph,
    Interface,
)
from skerry.wire import Answer


class ToInput(Protocol):
    """Writes a frame into a backend's input and says how it lies in the net's."""

    def __call__(self, frame: Frame, tensor: NDArray[np.generic]) -> Geometry: ...


def make_preprocessor(interface: Interface, graph: InGraph | None) -> ToInput:
    """What fills the input of a model whose graph does that much."""
    if graph is None or graph.frame is None:
        return Preprocessor(interface)
    return _WholeFrame(interface, graph.frame)


def make_reader(interface: Interface, graph: InGraph | None) -> Decoder:
    """What makes answers of the outputs of a model whose graph does that much."""
    return _Reader(interface, graph) if graph is not None and graph.answers else make_decoder(interface)


class _WholeFrame:
    """Hands the frame over as it is."""

    def __init__(self, interface: Interface, size: tuple[int, int]) -> None:
        self._size, self._geometry = size, Geometry(interface.preprocess, size, interface.input_size())

    def __call__(self, frame: Frame, tensor: NDArray[np.generic]) -> Geometry:
        """Raises `BackendError` for a frame of another size: its graph is made for one."""
        if frame.shape[:2] != self._size:
            raise BackendError(
                f"this release takes frames of {_by(self._size)}, this one has {_by(frame.shape)}: set the camera to "
                "that size, or compile the release for this one ([graph] frame)"
            )
        np.copyto(tensor[0], frame)
        return self._geometry


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


class _Reader:
    """Reads answers that a graph has decoded; what lies under the threshold, the graph listed for a proof's sake."""

    def __init__(self, interface: Interface, graph: InGraph) -> None:
        self._post, self._labels = interface.postprocess, interface.labels
        self._of_input = graph.frame is None

    def __call__(self, outputs: Outputs, geometry: Geometry, slack: float = 0.0) -> list[Answer]:
        """Raises `BackendError` if the graph did not look at all that counts: nothing is lost without a word."""
        post = self._post
        scores, classes = np.asarray(outputs[ANSWER_SCORES][0], np.float32), outputs[ANSWER_CLASSES][0]
        if isinstance(post, Classification):
            count, most, boxes = len(scores), post.top, None
        else:
            count, most = int(outputs[ANSWER_COUNT][0]), post.max_boxes
            boxes = self._boxes(outputs, geometry)
            if count < most and outputs[ANSWER_MISSED][0] > 0:
                raise BackendError(
                    f"its graph left {outputs[ANSWER_MISSED][0]} scores over the threshold aside, and answers may be "
                    "missing: compile it with more candidates or a higher min_score"
                )
        strong = [i for i in range(min(count, most, len(scores))) if scores[i] >= post.min_score - slack]
        labelled = [(name(self._labels, int(classes[i])), float(scores[i])) for i in strong]
        if boxes is None:
            return [Answer(label, score) for label, score in labelled]
        corners = [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in boxes[strong]]
        return [Answer(label, score, box) for (label, score), box in zip(labelled, corners, strict=True)]

    def _boxes(self, outputs: Outputs, geometry: Geometry) -> NDArray[np.float32]:
        """[M, 4], as fractions of the frame."""
        boxes = np.asarray(outputs[ANSWER_BOXES][0], np.float32)
        if not self._of_input:
            return boxes
        return geometry.to_frame(boxes * np.array([geometry.target[1], geometry.target[0]] * 2, np.float32))
