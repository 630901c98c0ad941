"""What a comparison shows the models: labelled samples, photos and videos without labels, or a release's own proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.comparison.unpacked import Opened
from compiler.data import dataset
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample, collect
from skerry.errors import CalibrationError, DatasetError
from skerry.execution.frames import IMAGES
from skerry.manifest import Detection, Interface

_EXPECTED = "expected a folder per label, images with VOC's XML or COCO's JSON, or photos and videos without labels"


@dataclass(frozen=True)
class Footage:
    """The frames to run on, sorted by path and index.

    Attributes:
        unlabelled: why nothing can be said about accuracy; None where the samples are labelled.
        found: how many there were before the limit.
    """

    samples: list[Labelled]
    found: int
    unlabelled: str | None = None

    @property
    def where(self) -> list[tuple[str, int]]:
        return [(s.sample.path, s.sample.index) for s in self.samples]


def read(folder: Path | None, a: Opened, most: int) -> Footage:
    """At most ``most`` frames of ``folder``, evenly over it; without one, those of the first bundle's proof.

    Raises:
        DatasetError: it is not there, is empty, its labels or boxes are not the model's, or files cannot be read.
        FormatError: an annotation is not what it should be.
    """
    if folder is None:
        return _own_proof(a)
    if not folder.is_dir():
        raise DatasetError(f"--data {folder} is not a folder; {_EXPECTED}")
    why = _no_labels(folder, a.manifest)
    if why is None:
        found = dataset.read(folder, a.manifest)
        return Footage(_evenly(found, most), len(found))
    try:
        plain = collect([folder])
    except CalibrationError as exc:
        raise DatasetError(f"--data {folder} holds no photo and no video; {_EXPECTED}") from exc
    found = [Labelled(sample=sample) for sample in [*plain.calibration, *plain.report]]
    chosen = _evenly(found, most)
    dataset.image_sizes([path for s in chosen if (path := Path(s.sample.path)).suffix.lower() in IMAGES])
    return Footage(chosen, len(found), why)


def _own_proof(a: Opened) -> Footage:
    proof = a.manifest.proof
    frames = str(a.root / proof.frames)
    samples = [Labelled(sample=Sample(frames, index, "")) for index in range(proof.count)]
    return Footage(samples, proof.count, f"no --data, so the frames are the {proof.count} of {a.path.name}'s proof")


def _no_labels(folder: Path, interface: Interface) -> str | None:
    """Why the folder is taken for unlabelled frames, or None if it is labelled."""
    if isinstance(interface.postprocess, Detection):
        told = any(p.suffix.lower() in (".xml", ".json") for p in folder.rglob("*"))
        return None if told else f"{folder} has no boxes: no VOC XML and no COCO JSON"
    folders = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if not folders:
        return f"{folder} has no labels: a folder for each would say them"
    if dataset.known_folders(folders, interface):
        return None
    return f"no folder in {folder} is called like a label of the model ({', '.join(folders[:3])} …)"


def _evenly(frames: Sequence[Labelled], most: int) -> list[Labelled]:
    ordered = sorted(frames, key=lambda s: (s.sample.path, s.sample.index))
    if len(ordered) <= most:
        return ordered
    return [ordered[k * len(ordered) // most] for k in range(most)]
