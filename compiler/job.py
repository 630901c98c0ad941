"""One compilation, as it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from compiler.data.samples import Samples
from compiler.evaluation.compare import Hop
from compiler.plan import Plan
from compiler.pruning.prune import EPOCHS
from compiler.quantization import calibrate
from compiler.search.budget import NO_LIMITS, Budget
from compiler.sources.recipe import Recipe, Source
from compiler.targets.target import VariantPlan
from skerry.manifest import DeviceFacts, Requires, why_not


@dataclass(frozen=True)
class Prune:
    """What ``--prune`` asks for.

    Attributes:
        keep: names of modules that lose no output channels.
        epochs: of fine-tuning, where there is data.
    """

    keep: tuple[str, ...] = ()
    epochs: int = EPOCHS


@dataclass(frozen=True)
class Job:
    """What to compile, from which data, for what, within which limits, signed by whom, and where to.

    Attributes:
        labelled: the folder of ``--eval``: samples that accuracy is counted on.
        prune: whether and how the net may be pruned.
        train: the folder of ``--train``: what a pruned net is fine-tuned on.
        replay: the plan whose decisions are built again; then nothing is searched.
        keep_slower: variants that are not faster than fp32 on this machine ship all the same: the devices are others.
        repair: what is out of tolerance is mended, if it can be.
        force: goes on after a refusal and puts it into the evidence; no limit is ever loosened.
    """

    source: Source
    samples: Samples
    plans: Sequence[tuple[VariantPlan, Requires]]
    facts: DeviceFacts
    key: ec.EllipticCurvePrivateKey
    out: Path
    calibrator: calibrate.Method = calibrate.DEFAULT
    budget: Budget = NO_LIMITS
    labelled: Path | None = None
    prune: Prune | None = None
    train: Path | None = None
    replay: Plan | None = None
    keep_slower: bool = False
    repair: bool = False
    force: bool = False

    @property
    def recipe(self) -> Recipe:
        return self.source.recipe

    @property
    def searches(self) -> bool:
        """Whether a limit or labelled samples were given, and no plan that has decided already."""
        return self.replay is None and (self.labelled is not None or self.budget != NO_LIMITS)

    def why_unmeasured(self, plan: VariantPlan, requires: Requires) -> str | None:
        """Why this machine cannot run a variant, or None if it can."""
        return why_not(plan.backend, requires, self.facts)


class Tell(Protocol):
    """Hears what goes on."""

    def hop(self, hop: Hop) -> None: ...

    def detail(self, text: str) -> None: ...

    def said(self, text: str) -> None:
        """A sentence for the user, to stay on the screen."""
