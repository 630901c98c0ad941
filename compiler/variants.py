"""What each variant becomes: by a plan, by a search, or with everything quantized that its layout can.

Two rules hold for all of them: no variant ships that is not faster than fp32 where this machine can run both, and a
drop in accuracy is what samples show that nothing before has read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx

from compiler.candidate import Candidate, file_digest
from compiler.data.dataset import Dataset
from compiler.evaluation.statistics import Ratio
from compiler.evidence.evidence import Accuracy, Point
from compiler.job import Job
from compiler.passes import MODEL, Passes
from compiler.plan import Decision
from compiler.quantization.units import fusion_units
from compiler.search import outcome
from compiler.search.budget import refused_latencies
from compiler.search.measure import Measure
from compiler.search.outcome import Outcome
from compiler.search.search import Search
from compiler.search.subject import OnnxSubject, whole
from compiler.targets.target import VariantPlan
from skerry.clock import Clock
from skerry.errors import MachineBusy
from skerry.manifest import Interface, Requires

_TIMED_S = 2.0


def latencies_not_held(job: Job) -> dict[str, str]:
    """Why ``--max-latency`` is not held, by variant. Raises `UsageError` if it can be shown for none."""
    plans = [(plan, requires) for plan, requires in job.plans if plan.beside is None and plan.precision != "fp32"]
    return refused_latencies(job.budget, {plan.id: job.why_unmeasured(plan, requires) for plan, requires in plans})


@dataclass(frozen=True)
class Variant:
    """A variant that ships.

    Attributes:
        here: this machine can run it.
        keep_float: nodes that are not quantized, but for what mending adds to them.
        repaired: it was mended; in a replay, it is to be.
        time: against fp32; None where this machine cannot run it.
    """

    plan: VariantPlan
    requires: Requires
    model: Candidate
    here: bool
    keep_float: tuple[str, ...] = ()
    repaired: bool = False
    time: Ratio | None = None

    @property
    def path(self) -> Path:
        return self.model / MODEL


@dataclass
class Variants:
    """Decides and builds the variants of one compilation.

    Attributes:
        exported: the net in fp32 that all variants are made of.
        check: why the recipe's limits refuse a file of a variant that runs here, or None.
        data: the labelled samples of ``--eval``, split.
        dense: what accuracy is held to where ``exported`` was pruned from it.
        pruned: share of the parameters that are gone.
        left_out: why, by variant that does not ship.
        accuracy: by variant, as it was counted last.
        refusals: why the compilation must not pass as good, by variant.
    """

    passes: Passes
    interface: Interface
    exported: Candidate
    clock: Clock
    check: Callable[[VariantPlan, Path], str | None]
    data: Dataset | None = None
    dense: Path | None = None
    pruned: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[Variant]:
        """What ships, in the order of the targets."""
        job = self.passes.job
        plans = [pair for pair in job.plans if pair[0].beside is None]  # the others: compiler/beside.py
        for why in latencies_not_held(job).values():
            self.passes.tell.said(why)
        found: list[Variant] = []
        for plan, requires in sorted(plans, key=lambda pair: job.why_unmeasured(*pair) is not None):
            if (made := self.make(plan, requires, found)) is not None:
                found.append(made)
        order = [plan.id for plan, _ in plans]
        return sorted(found, key=lambda v: order.index(v.plan.id))

    def make(self, plan: VariantPlan, requires: Requires, before: Sequence[Variant]) -> Variant | None:
        """Builds one variant; None, which is said, if it is not to ship."""
        here = self.passes.job.why_unmeasured(plan, requires) is None
        if plan.precision == "fp32" and plan.backend == "onnxrt":
            fp32 = Variant(plan, requires, self.exported, here)
            return fp32 if self.dense is None else self.held(fp32)
        if self.passes.job.replay is not None:
            return self._replayed(plan, requires, here=here)
        if here and self.passes.job.searches:
            return self._searched(plan, requires)
        keep = self._kept_like(plan, before)
        model = self.passes.variant(plan, self.calibrated, self.interface, keep)
        made = self.timed(Variant(plan, requires, model, here, keep))
        return None if made is None else self.held(made)

    def timed(self, variant: Variant) -> Variant | None:
        """The variant with its time against fp32; None if it is not faster than the fp32 beside it, which is said.

        Raises:
            MachineBusy: nobody can tell.
        """
        if not variant.here or variant.plan.precision == "fp32":
            return variant
        job, time = self.passes.job, self._time(variant.plan, variant.path)
        timed = replace(variant, time=time)
        beside = any(plan.precision == "fp32" for plan, _ in job.plans)
        if time.faster or not beside or job.keep_slower or job.replay is not None:
            return timed
        if time.undecided:
            raise MachineBusy(f"{variant.plan.id}: {time.busy}, or --keep-slower ships it whatever its time")
        self._leave_out(variant.plan, f"it takes {time.median:.2f} of fp32's time ({time.at_most:.2f} at most)")
        return None

    def _leave_out(self, plan: VariantPlan, why: str) -> None:
        self.left_out[plan.id] = why
        self.forget(plan)  # if it was counted, then of what was mended since
        self.passes.tell.said(f"{plan.id}: quantizing does not pay here: {why}; ships fp32")

    def forget(self, plan: VariantPlan) -> None:
        """Takes back what was counted of a variant: it does not ship."""
        self.accuracy.pop(plan.id, None)
        self.refusals.pop(plan.id, None)

    def _replayed(self, plan: VariantPlan, requires: Requires, *, here: bool) -> Variant | None:
        """As the plan says. It was held to its inputs when it was read."""
        replay = self.passes.job.replay
        decision = replay.decision(plan.id) if replay is not None else None
        if decision is None:
            return None
        keep = tuple(decision.keep_float)
        model = self.passes.variant(plan, self.calibrated, self.interface, keep)
        return self.held(Variant(plan, requires, model, here, keep, repaired=decision.repaired))

    # --- searching ------------------------------------------------------------------------------------------------

    @cached_property
    def calibrated(self) -> Candidate:
        """The whole model, ready to be quantized."""
        return self.passes.calibrate(self.exported, self.interface)

    @property
    def labelled_digest(self) -> str:
        """Names the labelled samples."""
        parts = [] if self.data is None else [*self.data.ranking, *self.data.search, *self.data.report]
        return hashlib.sha256("\n".join(sorted(s.sample.digest for s in parts)).encode()).hexdigest()

    @cached_property
    def _measure(self) -> Measure:
        return Measure(self.passes.work, self.passes.disk, self.interface)

    @property
    def _against(self) -> OnnxSubject | None:
        return None if self.dense is None else whole(self.dense, self.passes.work, self.clock)

    def _subject(self, plan: VariantPlan, *, here: bool) -> OnnxSubject:
        def lay_out(target: Path, nodes: Sequence[str], draft: bool) -> None:  # noqa: FBT001 - the search's form
            self.passes.lay_out(plan, self.calibrated, self.interface, target, nodes, draft=draft)

        return OnnxSubject(
            units=fusion_units(onnx.load(self.calibrated / MODEL)),
            float_model=self.exported / MODEL,
            lay_out=lay_out,
            config=self.passes.layout(plan, self.interface),
            work=self.passes.work,
            clock=self.clock,
            pruned=self.pruned,
            here=here,
            backend=plan.backend,
            check=lambda path: self.check(plan, path),
        )

    def _searched(self, plan: VariantPlan, requires: Requires) -> Variant | None:
        found = Search(
            variant=plan.id,
            rungs=[self._subject(plan, here=True)],
            interface=self.interface,
            data=self.data or self.passes.job.samples.report,
            budget=self.passes.job.budget,
            work=self.passes.work,
            disk=self.passes.disk,
            say=self.passes.tell.detail,
            against=self._against,
        ).run()
        self._take(plan, found)
        if not found.ships:
            return None
        model = self.passes.variant(plan, self.calibrated, self.interface, found.nodes)
        return Variant(plan, requires, model, here=True, keep_float=found.nodes, time=found.time)

    def _take(self, plan: VariantPlan, found: Outcome) -> None:
        """Keeps what a search found, and says it."""
        for words in found.words:
            self.passes.tell.said(words)
        self.points += found.points
        self.accuracy |= {plan.id: found.accuracy} if found.accuracy else {}
        self.refusals |= {plan.id: found.refusal} if found.refusal else {}
        if not found.ships:
            self.left_out[plan.id] = found.words[0].removeprefix(f"{plan.id}: ")

    # --- without a search of its own ------------------------------------------------------------------------------

    def _kept_like(self, plan: VariantPlan, before: Sequence[Variant]) -> tuple[str, ...]:
        """What this machine cannot run is quantized where the search quantized what it can: units mind alike."""
        return next((v.keep_float for v in before if v.plan.precision == plan.precision), ())

    def _time(self, plan: VariantPlan, model: Path) -> Ratio:
        """Kept in the work directory, so that a compilation that goes on decides as before."""
        fp32 = self.exported / MODEL
        subject = replace(whole(fp32, self.passes.work, self.clock), backend=plan.backend)
        beside = self._measure.beside(subject, model, fp32, _TIMED_S)
        assert beside is not None  # noqa: S101 - it was asked for a variant that runs here
        return beside.ratio

    def held(self, variant: Variant) -> Variant:
        """Counts its accuracy as it is now, if there are samples to count on, and holds it to the budget."""
        if self.data is None:
            return variant
        plan, against = variant.plan, self._against
        subject = whole(variant.path, self.passes.work, self.clock)
        if plan.precision != "fp32":
            subject = self._subject(plan, here=variant.here)
        self.passes.tell.detail(f"{plan.id}: {len(self.data.report):,} samples that nothing before has read")
        compared = self._measure.compare(against or subject, subject, variant.path, self.data.report)
        found = outcome.held(plan.id, compared, self.passes.job.budget, "fp32" if against is None else outcome.DENSE)
        self.passes.tell.said(found.words)
        self.accuracy[plan.id] = found.accuracy
        self.refusals.pop(plan.id, None)
        self.refusals |= {plan.id: found.refusal} if found.refusal else {}
        return variant


def decision(variant: Variant, calibrator: str, pruning: str | None) -> Decision:
    """A variant as a plan has it. ``pruning`` is the digest of the record that its net was cut by."""
    quantized = variant.plan.precision != "fp32"
    return Decision(
        id=variant.plan.id,
        backend=variant.plan.backend,
        precision=variant.plan.precision,
        layout=variant.plan.layout,
        calibration=calibrator if quantized else None,
        keep_float=list(variant.keep_float),
        repaired=variant.repaired,
        pruning=pruning,
        digest=file_digest(variant.path),
    )
