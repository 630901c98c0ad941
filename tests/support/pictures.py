"""Pictures without a motive: noise, and files that look like photos and are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def noise(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Frames uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def write_noise(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(1, size, seed)[0]).save(path)
    return path


def write_broken(path: Path, how: str) -> Path:
    """No photo at all ("text"), "half" of one, or one with a "chunk" whose name is damaged."""
    whole = write_noise(path, (300, 300)).read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    broken = {
        "text": b"this is no photo",
        "half": whole[: len(whole) // 2],
        "chunk": whole[:second] + b"\xff\x01\x02\x03" + whole[second + 4 :],
    }
    path.write_bytes(broken[how])
    return path
