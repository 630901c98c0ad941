"""Labelled pictures as batches of input tensors, for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface

UNLABELLED = -1
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """So many pictures as input tensors; of ``images``, the first ``count`` are real and the rest is filling."""

    images: torch.Tensor
    labels: torch.Tensor
    count: int


class Pictures:
    """Samples as input tensors, kept in memory in half precision if they fit there."""

    def __init__(self, samples: Sequence[tuple[str, int, int]], interface: Interface) -> None:
        self._samples, self._interface = samples, interface
        self._preprocess = Preprocessor(interface)
        self._shape = interface.inputs[0].shape
        self._across = 2 if interface.preprocess.layout == "nchw" else 1  # of one picture, the axis of its width
        self._known: dict[int, np.ndarray] = {}
        self._room = _CACHE_BYTES // (2 * math.prod(self._shape))

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, chosen: Sequence[int], size: int, mirrored: Sequence[bool]) -> Batch:
        images = np.zeros((size, *self._shape[1:]), np.float32)
        labels = np.full(size, UNLABELLED)
        for place, (index, mirror) in enumerate(zip(chosen, mirrored, strict=True)):
            image = self._picture(index)
            images[place] = np.flip(image, self._across) if mirror else image
            labels[place] = self._samples[index][2]
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), len(chosen))

    def _picture(self, index: int) -> np.ndarray:
        if index in self._known:
            return self._known[index]
        path, number, _ = self._samples[index]
        (frame,) = read_frames([(path, number)])
        tensor = np.zeros(self._shape, np.float32)
        self._preprocess(frame, tensor)
        if len(self._known) < self._room:
            self._known[index] = tensor[0].astype(np.float16)
        image: np.ndarray = tensor[0]
        return image
