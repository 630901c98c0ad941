"""Which frames calibrate and which frames judge.

Photos and videos are taken as they lie in the folders that the user names. The two sets never share a frame: a frame's
digest decides, so that the split stays the same when the folder grows or moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from compiler.candidate import file_digest
from skerry.errors import CalibrationError, SourceError
from skerry.execution.frames import IMAGES, VIDEOS, open_video, read_image

MAX_FRAMES_PER_VIDEO = 120  # neighbours look alike: more of one video says little more
MAX_CALIBRATION = 400
MAX_REPORT = 64
_FOR = {"--calib": "calibration", "--train": "training"}
_REPORT_SHARE = 5  # one frame in so many judges
_SHOWN = 5  # names in a message


class Sample(msgspec.Struct, frozen=True):
    """One frame: an image file (``index`` 0) or a frame of a video."""

    path: str
    index: int
    digest: str

    def where(self) -> list[str | int]:
        return [self.path, self.index]


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The frames by purpose, each sorted by path and index."""

    calibration: list[Sample]
    report: list[Sample]

    def digest(self) -> str:
        """Names the calibration set in the evidence."""
        return hashlib.sha256("\n".join(sorted(s.digest for s in self.calibration)).encode()).hexdigest()


def collect(folders: Sequence[Path]) -> Samples:
    """Lists every photo and a stride of every video below ``folders`` (files are taken as they are).

    Raises:
        CalibrationError: nothing usable there.
        SourceError: a video cannot be read.
    """
    by_rank = listed(folders, "--calib")
    report = [s for s in by_rank if int(s.digest[:8], 16) % _REPORT_SHARE == 0][:MAX_REPORT]
    calibration = [s for s in by_rank if int(s.digest[:8], 16) % _REPORT_SHARE != 0][:MAX_CALIBRATION]
    return Samples(calibration=_in_order(calibration), report=_in_order(report))


def listed(folders: Sequence[Path], option: str) -> list[Sample]:
    """Every photo and a stride of every video below ``folders``, each content once, in the order of the digests.

    Raises: as `collect`; ``option`` is what named the folders.
    """
    found = [sample for path in _files(folders) for sample in _samples(path)]
    if not found:
        kinds = " ".join(sorted(IMAGES | VIDEOS))
        where = f" in {', '.join(map(str, folders))}" if folders else ""
        raise CalibrationError(
            f"no {_FOR[option]} data{where}: expected photos or videos of what the camera sees ({kinds}); name a "
            f"folder with {option}"
        )
    return sorted({s.digest: s for s in found}.values(), key=lambda s: s.digest)


def check_readable(samples: Samples) -> None:
    """Reads every photo whole: they go into several passes, and each would name but one of the damaged.

    Raises:
        CalibrationError: some cannot be read; the message names them.
    """
    photos = {s.path for s in [*samples.calibration, *samples.report] if Path(s.path).suffix.lower() in IMAGES}
    damaged = {path: why for path in sorted(photos) if (why := _why_unreadable(Path(path)))}
    if damaged:
        count, names = len(damaged), ", ".join(list(damaged)[:_SHOWN])
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        raise CalibrationError(
            f"{count} {'file' if count == 1 else 'files'} of --calib cannot be read; {next(iter(damaged.values()))}; "
            f"mend or remove: {names}{more}"
        )


def _why_unreadable(photo: Path) -> str | None:
    try:
        read_image(photo)
    except SourceError as exc:
        return str(exc)
    return None


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` of the samples, evenly over each file's length and over the files, whatever these are called."""
    first: dict[str, str] = {}
    for sample in samples:
        first[sample.path] = min(sample.digest, first.get(sample.path, sample.digest))
    in_line = sorted(samples, key=lambda s: (first[s.path], s.index))
    return in_line[:: max(1, len(in_line) // count)][:count]


def _in_order(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: (s.path, s.index))


def _files(folders: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            files += [p for p in folder.rglob("*") if p.suffix.lower() in IMAGES | VIDEOS and p.is_file()]
        elif folder.is_file():
            files.append(folder)
        else:
            raise CalibrationError(f"{folder} is not there; expected a folder of photos or videos, or one such file")
    return sorted({file.absolute() for file in files})


def _samples(path: Path) -> list[Sample]:
    digest = file_digest(path)
    if path.suffix.lower() in IMAGES:
        return [Sample(str(path), 0, digest)]
    with open_video(path) as video:
        count = sum(1 for _ in video.frames())
    if not count:
        raise SourceError(f"{path} has no frame")
    stride = max(1, count // MAX_FRAMES_PER_VIDEO)
    return [
        Sample(str(path), index, hashlib.sha256(f"{digest}:{index}".encode()).hexdigest())
        for index in range(0, count, stride)
    ]
