"""What is measured of a candidate: its damage, its answers, its time. Each is kept in the work directory.

A search that was cut off goes on behind the last of them that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.accuracy import Comparison, answers, compare
from compiler.candidate import Work, file_digest
from compiler.dataset import Labelled
from compiler.samples import Sample
from compiler.search.sensitivity import damage
from compiler.search.subject import Subject
from skerry.disk import Disk
from skerry.documents import parse
from skerry.execution.backend import Tensors
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface
from skerry.wire import Answer

_PROBE_ROUNDS = 3
_MOST_ROUNDS = 400
_FILE = "answers.json"


class Measure:
    """Measures candidates of one variant, each thing once."""

    def __init__(self, work: Work, disk: Disk, interface: Interface) -> None:
        self._work, self._disk, self._interface = work, disk, interface
        self._inputs: dict[str, NDArray[np.generic]] = {}
        self._references: dict[Path, list[Tensors]] = {}

    def answers(self, subject: Subject, model: Path, samples: Sequence[Sample]) -> list[list[Answer]]:
        """What a model says about each sample."""

        def make(folder: Path) -> Mapping[str, object]:
            found = list(answers(subject.run(model), self._interface, samples))
            self._disk.replace(folder / _FILE, msgspec.json.encode(found))
            return {}

        config = {"model": file_digest(model), "runs": _runs(subject), **self._of(samples)}
        path = self._work.cached("answers", 1, [], config, make) / _FILE
        return parse(path.read_bytes(), list[list[Answer]], str(path))

    def compare(self, against: Subject, subject: Subject, model: Path, samples: Sequence[Labelled]) -> Comparison:
        """A model beside what ``against`` is in fp32, on labelled samples."""
        where = [s.sample for s in samples]
        reference = self.answers(against, against.float_model, where)
        return compare(self._interface, samples, reference, self.answers(subject, model, where))

    def damage(self, subject: Subject, model: Path, base: Path, samples: Sequence[Sample]) -> float:
        """What quantizing did to a model's outputs, beside those of ``base``."""

        def make(_folder: Path) -> Mapping[str, object]:
            run = subject.run(model)
            pairs = zip(self._reference(subject, base, samples), map(run, self._tensors(samples)), strict=True)
            return {"damage": damage(self._interface, pairs)}

        digests = {"model": file_digest(model), "base": file_digest(base)}
        config = {**digests, "runs": _runs(subject), **self._of(samples)}
        return float(self._work.cached("damage", 1, [], config, make).facts["damage"])

    def times(self, subject: Subject, models: Sequence[Path], seconds: float, least: int) -> list[list[float]] | None:
        """Milliseconds of models that are run in turn for about so long; None if they cannot be run here."""
        if not subject.here:
            return None

        def make(_folder: Path) -> Mapping[str, object]:
            return {"times_ms": measured(subject, models, seconds, least)}

        digests = [file_digest(model) for model in models]
        config = {"models": digests, "runs": _runs(subject), "seconds": seconds, "least": least}
        found = self._work.cached("times", 1, [], config, make).facts["times_ms"]
        return [[float(ms) for ms in series] for series in found]

    def _of(self, samples: Sequence[Sample]) -> dict[str, object]:
        view = self._interface
        return {
            "samples": [s.digest for s in samples],
            "path": [view.inputs, view.outputs, view.preprocess, view.postprocess, view.labels],
        }

    def _reference(self, subject: Subject, base: Path, samples: Sequence[Sample]) -> list[Tensors]:
        """The outputs of ``base``, kept: every unit is compared with them."""
        if base not in self._references:
            run = subject.run(base)
            self._references[base] = [
                {name: np.array(value) for name, value in run(tensor).items()} for tensor in self._tensors(samples)
            ]
        return self._references[base]

    def _tensors(self, samples: Sequence[Sample]) -> Iterator[NDArray[np.generic]]:
        """The input of each sample, prepared once: there are few that rank."""
        missing = [s for s in samples if s.digest not in self._inputs]
        preprocess, entry = Preprocessor(self._interface), self._interface.inputs[0]
        for sample, frame in zip(missing, read_frames([(s.path, s.index) for s in missing]), strict=True):
            tensor = np.zeros(entry.shape, entry.dtype)
            preprocess(frame, tensor)
            self._inputs[sample.digest] = tensor
        return (self._inputs[s.digest] for s in samples)


def measured(subject: Subject, models: Sequence[Path], seconds: float, least: int) -> list[list[float]] | None:
    """Times models in turn, in as many rounds as fill the ``seconds``, ``least`` at least; None as above."""
    return filled(partial(subject.time, models), seconds, least) if subject.here else None


def filled(time: Callable[[int], list[list[float]]], seconds: float, least: int) -> list[list[float]]:
    """What ``time`` finds in as many rounds as fill the ``seconds``, ``least`` at least."""
    round_ms = sum(float(np.median(series)) for series in time(_PROBE_ROUNDS))
    return time(max(least, min(_MOST_ROUNDS, int(seconds * 1e3 / round_ms))))


def _runs(subject: Subject) -> list[object]:
    """How its models are run, in a key."""
    return [subject.here, subject.backend]
