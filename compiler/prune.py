"""Which of a few pruned nets to take: as measured beside the dense one, never as multiplications promise.

Each rung of the ladder is a pass of its own: pruned, fine-tuned where there is data, exported. Rungs and the dense net
are then timed in turns on one thread, and a rung that is not shown to be faster is none.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler.candidate import Candidate, Work
from compiler.host import Host
from compiler.statistics import median_at_most
from skerry.disk import Disk
from skerry.manifest import Interface

LADDER = (0.125, 0.25, 0.375, 0.5)
ROUND_TO = 8  # what AVX2 and NEON kernels take at once; 16 for tensor cores
FASTER = 0.97  # of the dense net's time: what timing cannot tell from nothing is no gain


class Labelled(msgspec.Struct, frozen=True):
    """One picture to train with: ``label`` is the number of its class, or -1 where the dense net's answer is wanted."""

    path: str
    index: int
    label: int
    digest: str


class FineTune(msgspec.Struct, frozen=True, kw_only=True):
    """How a pruned net is trained again; the rest is told in `compiler.child.train.Training`.

    Attributes:
        held_out: chooses the epoch that is kept. Never the samples that a report or a search stands on.
        seconds: a limit for each rung; the same weights come out again only without one.
    """

    train: list[Labelled]
    held_out: list[Labelled]
    epochs: int = 10
    seconds: float | None = None
    batch: int = 32
    rate: float = 1e-3
    optimizer: str = "adamw"
    distillation: float = 0.5
    mirror: bool = True
    seed: int = 0
    threads: int = 1

    def digest(self) -> str:
        """Names the pictures and their labels."""
        lines = [f"{kind} {s.digest} {s.label}" for kind in ("train", "held_out") for s in getattr(self, kind)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants pruned.

    Attributes:
        keep: names of modules that lose no output channels.
        fine_tune: null where no data was given: then nothing is trained, and the facts say so.
    """

    ratios: tuple[float, ...] = LADDER
    round_to: int = ROUND_TO
    keep: tuple[str, ...] = ()
    fine_tune: FineTune | None = None


@dataclass(frozen=True)
class Rung:
    """One pruned net, beside the dense one.

    Attributes:
        times_dense: median of the paired time ratios.
        at_most: upper end of that median's one-sided 95 % interval.
    """

    ratio: float
    model: Candidate
    times_dense: float
    at_most: float

    @property
    def faster(self) -> bool:
        """Whether it may be returned at all."""
        return self.at_most < FASTER


@dataclass(frozen=True)
class Ladder:
    """Prunes one loaded model at several ratios.

    Args:
        loaded: the `load` pass.
        graph: the arguments of the child's ``export`` job, but for its file.
    """

    work: Work
    host: Host
    disk: Disk
    loaded: Candidate
    interface: Interface
    graph: Mapping[str, Any]
    pruning: Pruning

    def rung(self, ratio: float) -> Candidate:
        """One pass: "model.onnx", "pruning.json", "weights.safetensors".

        Facts: ratio, [before, after] of parameters and macs, violation, frozen, training (null: nothing was trained).
        Where nothing can go at this ratio: no file, and "nothing" says why.

        Raises:
            UserCodeError: the net cannot be exported or trained, or its code does not do what its graph says.
            CompileError: as `Host.call`.
        """
        settings, training = self.pruning, self.pruning.fine_tune
        config = {
            "ratio": ratio,
            "round_to": settings.round_to,
            "keep": settings.keep,
            "graph": self.graph,
            "training": training and {**msgspec.to_builtins(training), "train": training.digest(), "held_out": None},
            "preprocess": training and self.interface.preprocess,
        }
        return self.work.cached("prune", 1, [self.loaded], config, lambda folder: self._make(folder, ratio))

    def _make(self, folder: Path, ratio: float) -> Mapping[str, Any]:
        interface = self.work.scratch("prune") / "interface.json"
        self.disk.replace(interface, msgspec.json.encode(self.interface))
        facts = self.host.call(
            "prune",
            ratio=ratio,
            round_to=self.pruning.round_to,
            keep=self.pruning.keep,
            graph=self.graph,
            training=_training(self.pruning.fine_tune),
            interface=str(interface),
            out=str(folder),
        )
        return {"training": None, **facts}

    def climb(self, dense: Candidate, seconds: float) -> list[Rung]:
        """Every rung that takes something out, timed beside the dense net's export: one thread, in turns."""
        every = {ratio: self.rung(ratio) for ratio in self.pruning.ratios}
        made = {ratio: model for ratio, model in every.items() if "nothing" not in model.facts}
        paths = {"dense": dense / "model.onnx", **{str(ratio): model / "model.onnx" for ratio, model in made.items()}}
        times = self.host.call(
            "measure",
            shape=self.graph["shape"],
            models={name: str(path) for name, path in paths.items()},
            seconds=seconds,
            outputs=self.graph["outputs"],
        )["times_ms"]
        return [_measured(ratio, model, times[str(ratio)], times["dense"]) for ratio, model in made.items()]


def _training(how: FineTune | None) -> dict[str, Any] | None:
    if how is None:
        return None
    rows = {kind: [(s.path, s.index, s.label) for s in getattr(how, kind)] for kind in ("train", "held_out")}
    return {**msgspec.to_builtins(how), **rows}


def _measured(ratio: float, model: Candidate, times: Sequence[float], dense: Sequence[float]) -> Rung:
    ratios = [a / b for a, b in zip(times, dense, strict=True)]
    return Rung(ratio, model, statistics.median(ratios), median_at_most(ratios))


def pick(rungs: Sequence[Rung], wanted: float = 1.0) -> Rung | None:
    """The least pruned rung that takes at most ``wanted`` of the dense net's time; none that is not faster.

    None: no rung gets there. Whoever wants the fastest anyway takes ``min`` over those that are `faster`.
    """
    good = [rung for rung in rungs if rung.faster and rung.times_dense <= wanted]
    return min(good, key=lambda rung: rung.ratio, default=None)
