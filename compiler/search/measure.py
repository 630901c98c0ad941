"""What is measured of a candidate: its damage, its answers, its time. Each is kept in the work directory.

A search that was cut off goes on behind the last of them that ended. A time that decides nothing, since the machine was
busy, is measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.candidate import Work, file_digest
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from compiler.evaluation.accuracy import Comparison, answers, compare
from compiler.evaluation.statistics import MIN_BLOCKS, Ratio, median_at_most, nearly, time_ratio
from compiler.search.sensitivity import damage
from compiler.search.subject import Subject
from skerry.disk import Disk
from skerry.documents import parse
from skerry.execution.backend import Tensors
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.execution.turns import Timed
from skerry.manifest import Interface
from skerry.wire import Answer

_PROBE_ROUNDS = 3
_MOST_ROUNDS = 400
_MORE_TRIES = 2  # to find a machine that is busy a bit quiet enough for a verdict
_HOPELESS = 0.5  # of a processor: so busy a machine is not quiet a second later
_LEAST_SHARE = 0.01  # of a processor: so little promises no number of rounds
_FILE = "answers.json"


@dataclass(frozen=True)
class Beside:
    """A model's time beside another's.

    Attributes:
        at_most_ms: upper end of the interval of its own median.
    """

    ratio: Ratio
    at_most_ms: float

    def decides(self, limit_ms: float | None) -> bool:
        """The machine was quiet enough for a verdict, on the limit too."""
        near = nearly(self.at_most_ms, limit_ms, self.ratio.had_processor)
        return not self.ratio.undecided and not near


class _TooBusy(Exception):
    """Carries past the work directory what must not be kept there."""

    def __init__(self, found: Timed) -> None:
        super().__init__()
        self.found = found


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
        """Milliseconds of models that are run in turn for about so long; None if they cannot be run here.

        For ranking: kept however busy the machine was. What decides: `beside`.
        """
        if not subject.here:
            return None
        time = partial(filled, partial(subject.time, models), seconds, least)
        return kept(self._work, "times", _timing(subject, models, seconds, least), time, lambda _: True).times_ms

    def beside(
        self,
        subject: Subject,
        model: Path,
        base: Path,
        seconds: float,
        limit_ms: float | None = None,
        least: int = MIN_BLOCKS,
    ) -> Beside | None:
        """A model's time against that of ``base``, and against a limit, for a verdict; None likewise."""
        if not subject.here:
            return None
        models = [model, base]
        time = partial(filled, partial(subject.time, models), seconds, least)
        config = _timing(subject, models, seconds, least) | {"limit": limit_ms}
        return _beside(kept(self._work, "times", config, time, lambda found: _beside(found).decides(limit_ms)))

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


def kept(work: Work, name: str, config: object, time: Callable[[], Timed], keeps: Callable[[Timed], bool]) -> Timed:
    """What ``time`` finds: in the work directory if ``keeps`` says so, else as it is after a few tries."""

    def make(_folder: Path) -> Mapping[str, object]:
        found = time()
        for _ in range(_MORE_TRIES):
            if keeps(found) or found.had_processor < _HOPELESS:
                break
            found = time()
        if not keeps(found):
            raise _TooBusy(found)
        return {"timed": msgspec.to_builtins(found)}

    try:
        return msgspec.convert(work.cached(name, 2, [], config, make).facts["timed"], Timed)
    except _TooBusy as busy:
        return busy.found


def measured(subject: Subject, models: Sequence[Path], seconds: float, least: int) -> Timed | None:
    """Times models in turn, in as many rounds as fill the ``seconds``, ``least`` at least; None as above."""
    return filled(partial(subject.time, models), seconds, least) if subject.here else None


def filled(time: Callable[[int], Timed], seconds: float, least: int) -> Timed:
    """What ``time`` finds in as many rounds as fill the ``seconds``, ``least`` at least."""
    probe = time(_PROBE_ROUNDS)
    round_ms = sum(float(np.median(series)) for series in probe.times_ms) / max(probe.had_processor, _LEAST_SHARE)
    return time(max(least, min(_MOST_ROUNDS, int(seconds * 1e3 / round_ms))))


def _beside(found: Timed) -> Beside:
    model, base = found.times_ms
    return Beside(time_ratio(model, base, found.had_processor), median_at_most(model))


def _timing(subject: Subject, models: Sequence[Path], seconds: float, least: int) -> dict[str, object]:
    """What is timed, in a key."""
    digests = [file_digest(model) for model in models]
    return {"models": digests, "runs": _runs(subject), "seconds": seconds, "least": least}


def _runs(subject: Subject) -> list[object]:
    """How its models are run, in a key."""
    return [subject.here, subject.backend]
