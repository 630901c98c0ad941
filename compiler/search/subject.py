"""What the search needs of a variant: its units, and how a candidate is built, run and timed.

`OnnxSubject` is that for whatever runs an ONNX file; how a layout is written is handed in, so the search knows none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from compiler.candidate import Work, file_digest
from compiler.evaluation import compare
from compiler.evaluation.accuracy import Run
from skerry.clock import Clock
from skerry.execution.backend import backend_class
from skerry.execution.turns import Timed, Turns

_WARM_UP = 3
_ONNXRT = "onnxrt"


class Unit(Protocol):
    """What gets one precision together. See compiler/quantization/units.py."""

    @property
    def name(self) -> str: ...

    @property
    def nodes(self) -> Sequence[str]:
        """Names of its nodes."""

    @property
    def macs(self) -> int:
        """Multiplications of one inference."""


class Subject(Protocol):
    """One model that a variant can be made of. The first of several is the whole one, the others are pruned."""

    @property
    def units(self) -> Sequence[Unit]: ...

    @property
    def float_model(self) -> Path:
        """All of it in fp32."""

    @property
    def pruned(self) -> float:
        """Share of the parameters that were taken out."""

    @property
    def here(self) -> bool:
        """This machine has the kernels that the target has: what it times and answers is what the target does."""

    @property
    def backend(self) -> str:
        """What runs its quantized models here. ``float_model``, that they stand beside, runs on ONNX Runtime."""

    def build(self, keep_float: Collection[str], *, draft: bool = False) -> Path:
        """The model with all units quantized but those named.

        Args:
            draft: good enough to rank units by: without what takes minutes, such as correcting biases.
        """

    def run(self, model: Path) -> Run:
        """Runs a model for its answers, with the arithmetic of its target."""

    def time(self, models: Sequence[Path], rounds: int) -> Timed:
        """Each model in each round, taken in turn. Asked only where ``here``."""

    def refused(self, model: Path) -> str | None:
        """Why the recipe's own limits refuse a model, or None."""


# Writes a layout to a path: which nodes stay in fp32, and whether a draft will do.
LayOut = Callable[[Path, Sequence[str], bool], None]


@dataclass(frozen=True)
class OnnxSubject:
    """A variant in an ONNX file, run by its backend here or with every node literally as it stands.

    Args:
        config: all that decides what ``lay_out`` writes besides the model and the nodes: the layout, the digest of the
            calibration set. Names the cached builds.
        check: why the recipe's limits refuse a model.
    """

    units: Sequence[Unit]
    float_model: Path
    lay_out: LayOut
    config: object
    work: Work
    clock: Clock
    pruned: float = 0.0
    here: bool = True
    backend: str = _ONNXRT
    check: Callable[[Path], str | None] = lambda _model: None

    def build(self, keep_float: Collection[str], *, draft: bool = False) -> Path:
        """Built once: kept in the work directory by all that decides it."""
        unknown = set(keep_float) - {unit.name for unit in self.units}
        if unknown:
            raise ValueError(f"no unit is called {', '.join(sorted(unknown))}")
        if len(keep_float) == len(self.units):
            return self.float_model
        nodes = [node for unit in self.units if unit.name in keep_float for node in unit.nodes]

        def make(folder: Path) -> Mapping[str, object]:
            self.lay_out(folder / "model.onnx", nodes, draft)
            return {}

        config = {"model": file_digest(self.float_model), "config": self.config, "keep": nodes, "draft": draft}
        return self.work.cached("candidate", 1, [], config, make) / "model.onnx"

    def run(self, model: Path) -> Run:
        if self.here or model == self.float_model:
            return compare.on_backend(model, self._runs_on(model))
        return compare.literally(onnx.load(model))

    def time(self, models: Sequence[Path], rounds: int) -> Timed:
        return time_in_turn(models, rounds, self.clock, [self._runs_on(model) for model in models])

    def _runs_on(self, model: Path) -> str:
        return _ONNXRT if model == self.float_model else self.backend

    def refused(self, model: Path) -> str | None:
        return self.check(model)


def whole(model: Path, work: Work, clock: Clock) -> OnnxSubject:
    """A model in fp32 as it is, with nothing in it to quantize."""
    return OnnxSubject((), model, lambda _path, _nodes, _draft: None, None, work, clock)


def time_in_turn(models: Sequence[Path], rounds: int, clock: Clock, on: Sequence[str] | None = None) -> Timed:
    """One run each, one thread, in turn. ``on`` names the backend of each, ONNX Runtime if it is None.

    Every second round goes the way of the one before backwards, so that a drift hits all alike; and that way is drawn
    anew, from a fixed seed, so that whatever beats on the machine in a rhythm does not beat on the same model always.
    """
    names = [_ONNXRT] * len(models) if on is None else on
    backends = [backend_class(name)(model, threads=1) for name, model in zip(names, models, strict=True)]
    for backend in backends * _WARM_UP:
        backend.run()
    random, order = np.random.default_rng(0), np.arange(len(backends))
    turns = Turns(len(backends), clock)
    for number in range(rounds):
        order = order[::-1] if number % 2 else random.permutation(len(backends))
        for index in order:
            turns.take(int(index), backends[index].run)
    return turns.timed()
