"""Frames to compare models on: a folder per label, or a folder of photos and videos that nobody labelled.

Boxes (VOC, COCO) are not read here: detectors are compared by their answers alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from compiler.samples import collect
from skerry.errors import UsageError
from skerry.execution.frames import IMAGES


class Labelled(msgspec.Struct, frozen=True):
    """One frame and what it shows, where that is known."""

    path: str
    index: int
    label: str | None = None


def read(folder: Path, labels: Collection[str], most: int) -> list[Labelled]:
    """At most ``most`` frames of ``folder``, evenly over it, sorted by path.

    Raises:
        UsageError: it is not there, or its sub-folders are no labels of the model.
        CalibrationError: it holds no photo and no video.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one folder per label, or photos and videos")
    classes = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and any(map(_is_image, sub.iterdir()))]
    known = [sub for sub in classes if sub.name in labels]
    if not known:
        found = collect([folder])
        return _evenly([Labelled(s.path, s.index) for s in [*found.calibration, *found.report]], most)
    if strangers := [sub.name for sub in classes if sub.name not in labels]:
        raise UsageError(
            f"{folder} has folders that are no label of the model: {', '.join(strangers[:5])}; it knows "
            f"{', '.join(sorted(labels)[:5])} …"
        )
    frames = [Labelled(str(p), 0, sub.name) for sub in known for p in sorted(sub.iterdir()) if _is_image(p)]
    return _evenly(frames, most)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def _evenly(frames: Sequence[Labelled], most: int) -> list[Labelled]:
    ordered = sorted(frames, key=lambda f: (f.path, f.index))
    if len(ordered) <= most:
        return ordered
    return [ordered[k * len(ordered) // most] for k in range(most)]
