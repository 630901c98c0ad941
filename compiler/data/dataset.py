"""Labelled samples: what lies in the folder of ``--eval``, and which of them search and which report.

A classifier's samples lie in a folder per class, named as the label; a detector's are images with Pascal VOC's XML or
COCO's JSON. A sample is its content: a file that lies there twice counts once, and its digest alone decides what it
is for, so that the split stays the same when the folder grows or moves. A frame that calibrates, or judges parity, is
no sample.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from compiler.candidate import file_digest
from compiler.data.annotations import Annotated, Box, read_coco, read_voc
from compiler.data.samples import Sample
from skerry.errors import DatasetError, SourceError
from skerry.execution.frames import IMAGES, read_image
from skerry.execution.processing import name as label_name
from skerry.manifest import Classification, Detection, Interface

MAX_RANKING = 64  # samples that rank the units
MAX_SEARCH = 2000
_SHARES = 20  # of so many, by digest: the first 2 rank, the next 5 search, the rest report
_RANKING, _SEARCH = 2, 7
_SHOWN = 5  # names in a message


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """One sample and the truth about it: a label, or boxes."""

    sample: Sample
    label: str | None = None
    boxes: tuple[Box, ...] = ()


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Samples by purpose: no two share a picture. Each sorted by path.

    Attributes:
        ranking: which unit minds being quantized (A).
        search: what candidates are chosen by (B).
        report: what the chosen one is held to the budget on, once; the search never reads them (C).
        taken: samples that were left out because they calibrate or judge parity: the search has seen those.
    """

    ranking: list[Labelled]
    search: list[Labelled]
    report: list[Labelled]
    taken: int = 0


def split(samples: Sequence[Labelled], taken: Collection[str]) -> Dataset:
    """Splits by digest; a sample whose digest is among ``taken``, those of --calib's frames, is theirs.

    Raises:
        DatasetError: nothing is left to search or to report with.
    """
    left = [s for s in samples if s.sample.digest not in taken]
    by_rank = sorted(left, key=lambda s: s.sample.digest)
    parts = {
        "ranking": [s for s in by_rank if _share(s) < _RANKING][:MAX_RANKING],
        "search": [s for s in by_rank if _RANKING <= _share(s) < _SEARCH][:MAX_SEARCH],
        "report": [s for s in by_rank if _share(s) >= _SEARCH],
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise DatasetError(
            f"{len(samples)} labelled samples, {len(samples) - len(left)} of which are frames of --calib too: "
            f"none is left for {' and '.join(empty)}; add samples to --eval, some hundreds at least"
        )
    in_order = {name: sorted(part, key=lambda s: s.sample.path) for name, part in parts.items()}
    return Dataset(**in_order, taken=len(samples) - len(left))


def _share(sample: Labelled) -> int:
    return int(sample.sample.digest[:8], 16) % _SHARES


def to_add(reported: int) -> int:
    """How many samples more in ``--eval`` it takes, by and large, for so many more that report."""
    return math.ceil(reported * _SHARES / (_SHARES - _SEARCH))


def read(folder: Path, interface: Interface) -> list[Labelled]:
    """The labelled samples below ``folder``, each content once, sorted by path.

    Raises:
        DatasetError: no such folder, nothing labelled in it, a class that the model does not know or that is missing,
            one picture with two truths, files that cannot be read; the message names them.
        FormatError: an annotation is not what it should be.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; expected labelled samples: name their folder with --eval")
    found = _boxed(folder, interface) if isinstance(interface.postprocess, Detection) else _sorted(folder, interface)
    return _once(found)


def _once(samples: Iterable[Labelled]) -> list[Labelled]:
    """Each content once. A picture with two truths would make every model half wrong."""
    known: dict[str, Labelled] = {}
    for sample in samples:
        first = known.setdefault(sample.sample.digest, sample)
        if (first.label, first.boxes) != (sample.label, sample.boxes):
            raise DatasetError(
                f"{first.sample.path} and {sample.sample.path} are the same picture and are labelled differently; "
                "remove one of them"
            )
    return sorted(known.values(), key=lambda s: s.sample.path)


# --- a folder per class --------------------------------------------------------------------------------------------


def _sorted(folder: Path, interface: Interface) -> list[Labelled]:
    """A classifier's samples."""
    classes = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    images = {name: _images(path) for name, path in classes.items()}
    if not any(images.values()):
        raise DatasetError(
            f"{folder} holds no labelled images; expected a folder per class, named as its label, with images in it"
        )
    names = _match(list(classes), labels(interface), folder)
    files = [(path, names[name]) for name, paths in images.items() for path in paths]
    image_sizes([path for path, _ in files])
    return [Labelled(sample=_sample(path), label=label) for path, label in files]


def known_folders(folders: Collection[str], interface: Interface) -> list[str]:
    """Those of ``folders`` that are named as a label of a classifier."""
    plain = {_plain(label) for label in labels(interface)}
    return [name for name in folders if _plain(name) in plain]


def labels(interface: Interface) -> list[str]:
    """A classifier's labels, in the order of its scores."""
    post = interface.postprocess
    assert isinstance(post, Classification)  # noqa: S101 - the caller looked
    classes = next(t.shape[-1] for t in interface.outputs if t.name == post.scores)
    return interface.labels or [label_name([], i) for i in range(classes)]


def _match(folders: Sequence[str], labels: Sequence[str], where: Path) -> dict[str, str]:
    """Each folder's label; names are compared without case, blanks, dashes and underscores.

    An empty folder says that a class is left out on purpose: accuracy over some of the classes is not the model's.
    """
    by_plain = {_plain(label): label for label in labels}
    if unknown := [name for name in folders if _plain(name) not in by_plain]:
        hints = [close for name in unknown for close in difflib.get_close_matches(name, labels, 1)]
        hint = f"; did you mean {hints[0]!r}?" if hints else ""
        raise DatasetError(
            f"{where}: the model knows no class {_list(unknown)}; its labels are {_list(labels)}{hint} "
            "(folders are named as labels; `skerry compile --labels` says what these are)"
        )
    there = {_plain(name) for name in folders}
    if missing := [label for plain, label in by_plain.items() if plain not in there]:
        raise DatasetError(
            f"{where}: no folder for {len(missing)} of {len(labels)} classes: {_list(missing)}; add them, or an empty "
            "folder for each class that you mean to leave out"
        )
    return {name: by_plain[_plain(name)] for name in folders}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


# --- boxes ---------------------------------------------------------------------------------------------------------


def _boxed(folder: Path, interface: Interface) -> list[Labelled]:
    """A detector's samples: VOC if there is XML, else COCO."""
    images = _images(folder)
    if not images:
        raise DatasetError(f"{folder} holds no images; expected images with VOC's XML or COCO's JSON")
    sizes = image_sizes(images)
    pairs = _voc(folder, images) if any(folder.rglob("*.xml")) else _coco(folder, images)
    found = [
        Labelled(sample=_sample(path), boxes=tuple(annotated.scaled(*sizes[path], str(path))))
        for path, annotated in pairs
    ]
    _check_classes(found, interface, folder)
    return found


def _voc(folder: Path, images: Sequence[Path]) -> list[tuple[Path, Annotated]]:
    """Pairs by the name of the file without its ending, as VOC does: what <filename> says is often wrong."""
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.xml")):
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise DatasetError(f"{other} and {path} both speak of {path.stem}; expected one annotation an image")
    if bare := [str(image) for image in images if image.stem not in by_stem]:
        raise DatasetError(
            f"{len(bare)} images have no annotation: {_list(bare)}; expected an XML file of the same name for each, "
            "with no <object> in it if nothing is to be seen"
        )
    return [(image, read_voc(by_stem[image.stem])) for image in images]


def _coco(folder: Path, images: Sequence[Path]) -> list[tuple[Path, Annotated]]:
    """Pairs by path below the folder, or by the file's name where that is unique."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DatasetError(f"{folder} holds images and no annotations; expected VOC's XML or COCO's JSON")
    by_name = _unique({p.name: p for p in images}, images) | {p.relative_to(folder).as_posix(): p for p in images}
    pairs = []
    for file in files:
        for annotated in read_coco(file):
            if annotated.file not in by_name:
                raise DatasetError(f"{file} lists {annotated.file}, which is not below {folder}")
            pairs.append((by_name[annotated.file], annotated))
    return pairs


def _unique(named: Mapping[str, Path], images: Sequence[Path]) -> dict[str, Path]:
    names = [p.name for p in images]
    return {name: path for name, path in named.items() if names.count(name) == 1}


def _check_classes(samples: Sequence[Labelled], interface: Interface, where: Path) -> None:
    post = interface.postprocess
    nothing = post.background if isinstance(post, Detection) else None
    known = {label for index, label in enumerate(interface.labels) if index != nothing}
    boxes = [box for sample in samples for box in sample.boxes]
    if unknown := sorted({box.label for box in boxes} - known):
        raise DatasetError(
            f"{where}: boxes of {_list(unknown)}; the model knows {_list(sorted(known))} (boxes are named as labels; "
            "`skerry compile --labels` says what these are)"
        )
    if missing := sorted(known - {box.label for box in boxes if not box.aside}):
        raise DatasetError(
            f"{where}: no box of {_list(missing)}: what was never there cannot have been found; add images of it"
        )


# --- files ---------------------------------------------------------------------------------------------------------


def _images(folder: Path) -> list[Path]:
    return sorted(p.absolute() for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())


def _sample(path: Path) -> Sample:
    return Sample(str(path), 0, file_digest(path))


def image_sizes(paths: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Width and height. Reads every image whole: after hours of searching is a bad time to learn of a damaged one."""
    sizes, damaged = {}, []
    for path in paths:
        try:
            height, width = read_image(path).shape[:2]
            sizes[path] = width, height
        except SourceError:
            damaged.append(str(path))
    if damaged:
        raise DatasetError(f"{len(damaged)} files cannot be read: {_list(damaged)}; mend or remove them")
    return sizes


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
