"""Frames from files: one image, or a video one frame after the other. Decoders are imported when a file needs them."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from skerry.errors import SourceError
from skerry.execution.processing import Frame

if TYPE_CHECKING:
    import av
    from PIL import Image

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".ts"})


def read_image(path: Path) -> Frame:
    """An image as RGB, turned the way its EXIF orientation says.

    Raises:
        SourceError: not there, or not an image.
    """
    try:
        return _upright(path)
    except Exception as exc:  # what a damaged file makes Pillow's plugins raise is listed nowhere
        raise SourceError(f"cannot read the image {path}: {exc}") from exc


def _upright(file: Path | BinaryIO) -> Frame:
    from PIL import Image, ImageOps  # noqa: PLC0415 - a device that only has cameras never loads it

    with Image.open(file) as image:
        return _rgb(ImageOps.exif_transpose(image), image.format)


def _rgb(image: Image.Image, kind: str | None) -> Frame:
    """The pixels. Pillow's own conversion clips gray of 16 bits: whatever is brighter than 1/256 would be white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        eight = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(eight[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise SourceError("its pixels are numbers of 32 bits; expected 8 or 16 bits a channel")
    return np.asarray(image.convert("RGB"))


def decode_image(data: bytes) -> Frame:
    """An image file's bytes as RGB, as `read_image` reads a file.

    Raises:
        SourceError: not an image.
    """
    try:
        return _upright(io.BytesIO(data))
    except Exception as exc:  # as there
        raise SourceError(f"these {len(data)} bytes are no image that can be read: {exc}") from exc


class Video:
    """An open video file.

    Attributes:
        rate: frames per second, as the container says; 25 if it does not.
    """

    def __init__(self, path: Path, container: av.container.InputContainer) -> None:
        self.path = path
        self._container = container
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise SourceError(f"{path}: no decoder here knows its kind of video; convert it, to H.264 for instance")
        self._stream.codec_context.thread_count = 1  # the other cores belong to inference
        self.rate = float(self._stream.average_rate or 25)

    def frames(self) -> Iterator[av.VideoFrame]:
        """The frames in order, still in the decoder's own format: `pixels` converts one.

        Raises:
            SourceError: the file is damaged here; the frames before were good.
        """
        import av  # noqa: PLC0415 - as above

        try:
            yield from self._container.decode(self._stream)
        except av.FFmpegError as exc:
            raise SourceError(f"{self.path} is damaged: {exc.strerror}") from exc


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Opens a video file.

    Raises:
        SourceError: not there, not a video, or without a picture stream.
    """
    import av  # noqa: PLC0415 - as above

    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as exc:
        raise SourceError(f"cannot open the video {path}: {exc.strerror or exc}") from exc
    with container:
        if not container.streams.video:
            raise SourceError(f"{path} has no video stream")
        yield Video(path, container)


def pixels(frame: av.VideoFrame) -> Frame:
    """A decoded frame as RGB."""
    return np.asarray(frame.to_ndarray(format="rgb24"))


def read_frames(where: Sequence[tuple[str, int]]) -> Iterator[Frame]:
    """The frames at (path, number), number 0 for an image. Sorted input decodes each video once.

    Raises:
        SourceError: one cannot be read, or lies beyond its video's end.
    """
    for path, group in itertools.groupby(where, key=lambda pair: pair[0]):
        wanted = [number for _, number in group]
        if Path(path).suffix.lower() in IMAGES:
            yield read_image(Path(path))
            continue
        with open_video(Path(path)) as video:
            frames = enumerate(video.frames())
            number, frame = -1, None
            for want in wanted:
                while number < want:
                    number, frame = next(frames, (want, None))
                if frame is None:
                    raise SourceError(f"{path} has no frame {want}; it ends before")
                yield pixels(frame)
