"""The pictures of ``--train``: a folder per class, or photos and videos that nobody labelled.

Without labels, and for whatever does not classify, only the dense net's own answers teach. A picture that accuracy is
counted on (``--eval``) is never trained with. The digest of a picture decides whether it trains or chooses the epoch.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from compiler.data import dataset, samples
from compiler.pruning.prune import FineTune, Picture, Schedule
from skerry.errors import DatasetError, UsageError
from skerry.manifest import Classification, Interface

UNLABELLED = -1
_CHOOSES = 10  # one picture in so many chooses the epoch, and is not trained with


def read(folder: Path, interface: Interface, counted: Collection[str], schedule: Schedule) -> FineTune:
    """What to train with, in the order of the digests: names do not matter.

    Args:
        counted: digests of the samples of ``--eval``, which are left out.

    Raises:
        UsageError: no such folder.
        DatasetError, CalibrationError, SourceError: what lies there cannot be used; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"--train {folder} is not a folder; expected a folder per class, or photos without labels")
    found = sorted(_pictures(folder, interface), key=lambda p: p.digest)
    left = [p for p in found if p.digest not in counted]
    held_out = [p for p in left if int(p.digest[:8], 16) % _CHOOSES == 0]
    train = [p for p in left if int(p.digest[:8], 16) % _CHOOSES != 0]
    if not train or not held_out:
        raise DatasetError(
            f"--train {folder}: {len(found)} pictures, {len(found) - len(left)} of which lie in --eval too: "
            f"{len(train)} are left to train with and {len(held_out)} to choose the epoch; add pictures"
        )
    taken = [p.digest for p in found if p.digest in counted]
    return FineTune(train=train, held_out=held_out, left_out=taken, schedule=schedule)


def _pictures(folder: Path, interface: Interface) -> list[Picture]:
    folders = [p.name for p in folder.iterdir() if p.is_dir()]
    if isinstance(interface.postprocess, Classification) and dataset.known_folders(folders, interface):
        numbers = {label: number for number, label in enumerate(dataset.labels(interface))}
        found = dataset.read(folder, interface)
        return [Picture(s.sample.path, s.sample.index, numbers[str(s.label)], s.sample.digest) for s in found]
    every = samples.listed([folder], "--train")
    return [Picture(s.path, s.index, UNLABELLED, s.digest) for s in every]
