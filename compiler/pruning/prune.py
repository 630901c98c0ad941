"""Pruned nets of one loaded model, as passes: cut, exported, fine-tuned. Which of them is taken: `compiler.climb`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler.candidate import Candidate, Work, file_digest
from compiler.host import Host
from skerry.disk import Disk
from skerry.manifest import Interface, Sha256

LADDER = (0.125, 0.25, 0.375, 0.5)
ROUND_TO = 8  # what AVX2 and NEON kernels take at once; 16 for tensor cores
EPOCHS = 10
RECORD = "pruning.json"


class Picture(msgspec.Struct, frozen=True):
    """One picture to train with: ``label`` is the number of its class, or -1 where the dense net's answer is wanted."""

    path: str
    index: int
    label: int
    digest: str


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pruned net is trained again; the rest is told in `compiler.child.train.Training`.

    Attributes:
        seconds: a limit; the same weights come out again only without one.
    """

    epochs: int = EPOCHS
    seconds: float | None = None
    batch: int = 32
    rate: float = 1e-3
    optimizer: str = "adamw"
    distillation: float = 0.5
    mirror: bool = True
    seed: int = 0
    threads: int = 1


class FineTune(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures to train with, and how.

    Attributes:
        held_out: chooses the epoch that is kept. Never the samples that a report or a search stands on.
        left_out: digests of pictures that were not taken because accuracy is counted on them.
    """

    train: list[Picture]
    held_out: list[Picture]
    left_out: list[str] = []
    schedule: Schedule = Schedule()

    def digest(self) -> str:
        """Names the pictures, their labels and what they are for."""
        lines = [f"{kind} {s.digest} {s.label}" for kind in ("train", "held_out") for s in getattr(self, kind)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """How a net is pruned.

    Attributes:
        keep: names of modules that lose no output channels.
        fine_tune: null where no data was given: then nothing is trained.
    """

    ratios: tuple[float, ...] = LADDER
    round_to: int = ROUND_TO
    keep: tuple[str, ...] = ()
    fine_tune: FineTune | None = None


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fine-tuning as a plan has it: ``pictures`` is `FineTune.digest`, the rest as there."""

    pictures: Sha256
    left_out: list[Sha256] = []
    schedule: Schedule


class Cut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pruned net as a plan has it.

    Attributes:
        record: digest of the pruning record that came of it.
        tuning: null: nothing was trained.
    """

    ratio: float
    round_to: int
    keep: list[str] = []
    record: Sha256
    tuning: Tuning | None = None


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

    def cut(self, ratio: float) -> Candidate:
        """One pass: "model.onnx", "pruning.json", "weights.safetensors", with the weights that stay as they were.

        Facts: ratio, [before, after] of parameters and macs, violation, frozen. Where nothing can go at this ratio: no
        file, and "nothing" says why.

        Raises:
            UserCodeError: the net cannot be exported, or its code does not do what its graph says.
            CompileError: as `Host.call`.
        """
        how = {"ratio": ratio, "round_to": self.pruning.round_to, "keep": list(self.pruning.keep)}
        make = lambda folder: self.host.call("prune", **how, graph=self.graph, out=str(folder))  # noqa: E731
        return self.work.cached("prune", 2, [self.loaded], {**how, "graph": self.graph}, make)

    def tuned(self, pruned: Candidate) -> Candidate:
        """The same files after training, and the fact "training"; as it was cut, where there is no data.

        Raises:
            UserCodeError: the net cannot be trained.
        """
        if (how := self.pruning.fine_tune) is None:
            return pruned

        def make(folder: Path) -> Mapping[str, Any]:
            interface = self.work.scratch("prune") / "interface.json"
            self.disk.replace(interface, msgspec.json.encode(self.interface))
            facts = self.host.call(
                "fine_tune",
                pruned=str(pruned.folder),
                graph=self.graph,
                training=_training(how),
                interface=str(interface),
                out=str(folder),
            )
            return {**pruned.facts, **facts}

        path = [self.interface.preprocess, self.interface.postprocess]
        config = {"pictures": how.digest(), "how": how.schedule, "path": path, "graph": self.graph}
        return self.work.cached("fine-tune", 1, [self.loaded, pruned], config, make)

    def plan(self, model: Candidate) -> Cut:
        """What makes this rung again."""
        how, settings = self.pruning.fine_tune, self.pruning
        tuning = None
        if how is not None:
            tuning = Tuning(pictures=how.digest(), left_out=how.left_out, schedule=how.schedule)
        ratio, record = model.facts["ratio"], file_digest(model / RECORD)
        return Cut(ratio=ratio, round_to=settings.round_to, keep=list(settings.keep), record=record, tuning=tuning)


def _training(how: FineTune) -> dict[str, Any]:
    rows = {kind: [(s.path, s.index, s.label) for s in getattr(how, kind)] for kind in ("train", "held_out")}
    return {**msgspec.to_builtins(how.schedule), **rows}
