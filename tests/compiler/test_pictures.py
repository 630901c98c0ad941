"""Pictures for training: mirrored from left to right, whichever axis that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import interface
from PIL import Image

from compiler.child.pictures import UNLABELLED, Pictures
from skerry.manifest import Preprocess

pytestmark = pytest.mark.slow  # torch takes seconds to import


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_mirrored_picture_keeps_its_colours(layout: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    for name, image in (("plain", pixels), ("mirrored", pixels[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{name}.png")
    samples = [(str(tmp_path / f"{name}.png"), 0, 2) for name in ("plain", "mirrored")]

    batch = Pictures(
        samples, interface({"scores": [1, 4]}, Preprocess(resize="stretch", layout=layout), size=(8, 6))
    ).batch([0, 1], 3, [True, False])

    assert torch.equal(batch.images[0], batch.images[1])
    assert batch.count == 2
    assert batch.labels.tolist() == [2, 2, UNLABELLED]
