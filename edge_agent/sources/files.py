"""Clips and folders of images: they end, and they wait for whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.mailbox import Picture
from skerry.errors import SourceError
from skerry.execution.frames import IMAGES, open_video, read_image

_IMAGE_RATE = 1.0  # images of a folder per second, in real time
_LOOK_S = 0.25


def check_clip(path: Path) -> None:
    """Raises `SourceError` if it cannot be read."""
    with open_video(path):
        pass


def check_folder(path: Path) -> None:
    """Raises `SourceError` if there is no image in it."""
    if not images(path):
        raise SourceError(
            f"{path} holds no image; expected {' '.join(sorted(IMAGES))}, or watch = true for a folder that gets them"
        )


def clip(path: Path) -> Iterator[tuple[float, Picture]]:
    """A clip's pictures, each with its time in seconds since the first."""
    with open_video(path) as video:
        for number, frame in enumerate(video.frames()):
            yield number / video.rate, frame


def folder(path: Path) -> Iterator[tuple[float, Picture]]:
    """A folder's images by name."""
    for number, image in enumerate(images(path)):
        yield number / _IMAGE_RATE, read_image(image)


def images(path: Path) -> list[Path]:
    """By name."""
    return sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)


def watched(path: Path, wait: Callable[[float], bool], failed: Callable[[str], None]) -> Iterator[Picture]:
    """Each image that comes into a folder, once it is whole; those that are there already are left alone.

    An image counts as whole when its size and time have not changed between two looks. One that cannot be read is told
    to ``failed``, and the next one comes.

    Args:
        wait: pauses so many seconds; whether to end.

    Raises:
        SourceError: the folder is gone.
    """
    known = _states(path)
    seen = set(known)
    pending: dict[str, tuple[int, int]] = {}
    while not wait(_LOOK_S):
        states = _states(path)
        ready = sorted(name for name, state in states.items() if name not in seen and pending.get(name) == state)
        for name in ready:
            seen.add(name)
            try:
                picture = read_image(path / name)
            except SourceError as exc:
                failed(str(exc))
                continue
            yield picture
        pending = {name: state for name, state in states.items() if name not in seen}
        seen &= set(states)  # a name that is used again is a new picture


def _states(path: Path) -> dict[str, tuple[int, int]]:
    found = {}
    try:
        for image in images(path):
            try:
                about = image.stat()
            except FileNotFoundError:
                continue
            found[image.name] = (about.st_size, about.st_mtime_ns)
    except OSError as exc:
        raise SourceError(f"{path} cannot be read any more: {exc.strerror}") from exc
    return found
