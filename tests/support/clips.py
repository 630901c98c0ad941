"""Small real videos and images, of frames that the tiny net can tell apart."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import tiny
from PIL import Image


def write_clip(
    path: Path, frames: int, rate: int = 25, size: tuple[int, int] = (64, 96), *, dark: bool = False
) -> Path:
    """A clip whose colour changes every ten frames, or that is black throughout."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = tiny.coloured(number // 10 % 3, number, *size) * (not dark)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(tiny.coloured(number % 3, number)).save(folder / f"{number:03d}.png")
    return folder
