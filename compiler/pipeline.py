"""The order of a compilation: load, reference, export, quantize or search, compare, measure, package.

What makes files is a pass (compiler/passes.py) and resumes. Comparing and measuring make none and are done anew each
time: they speak of here and now.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from compiler import plan, pruned
from compiler.beside import Offers
from compiler.candidate import Candidate, Work, tool_versions
from compiler.climb import Found
from compiler.data import dataset
from compiler.data.dataset import Dataset, Labelled
from compiler.evaluation import accuracy, compare, misread
from compiler.evaluation.compare import Reference
from compiler.evidence.evidence import Evidence
from compiler.findings import Findings
from compiler.hops import Hops
from compiler.host import Host
from compiler.ingraph import release as ingraph
from compiler.job import Job, Tell
from compiler.passes import MODEL, Passes, interface_of
from compiler.release import Release, proof_frames
from compiler.sources.lineage import lineage
from compiler.sources.recipe import MIN_CALIBRATION_FRAMES
from compiler.variants import Variant, Variants, decision, latencies_not_held
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.errors import BudgetError, CalibrationError, DatasetError
from skerry.execution.frames import read_frames
from skerry.manifest import Interface, Limits

_MEASURE_S = 2.0  # of timing, about
_PROOF_S, _PROOF_MIB = 600.0, 4096
_ADD_UP_TO = 140  # frames of --calib: of these 100 calibrate, with a chance of 99 % (compiler/data/samples.py)
_LOOKED_AT = 4  # frames that layers' errors are measured on


@dataclass
class Compilation:
    """Runs a `Job`: `run` leaves the bundle at ``job.out`` and returns the evidence."""

    job: Job
    work: Work
    host: Host
    disk: Disk
    tell: Tell
    clock: Clock
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    pruned: Found = field(default_factory=Found)

    def run(self) -> Evidence:
        """Raises `CompileError` and its kin (skerry/errors.py)."""
        self.job = replace(self.job, samples=ingraph.of_size(self.job.samples, self.job.recipe.graph))
        self._check_calibration()
        self._check_plan()
        latencies_not_held(self.job)
        loaded = self._passes.load()
        interface = interface_of(self.job, loaded.facts)
        data, counted = self._labelled(interface)  # whatever is wrong with it is said before the work
        reference = self._reference(loaded, interface)
        proof_frames(self.job, reference)  # what gives no proof is refused now, and not after hours of searching
        self.findings.hold(compare.compare_preprocessing(reference, self._limits))
        dense = self._passes.export(loaded)
        self._hops.export(dense, reference, self.host.reference)
        self._check_reading(dense, interface, data)
        self.pruned = pruned.found(self._passes, loaded, dense / MODEL, interface, counted, data, self.clock)
        exported = self.pruned.model or dense
        if exported is not dense:
            reference = self._adopted(exported, interface)
        check = lambda plan, path: self._hops.hop(plan, path, reference, here=True).failed  # noqa: E731
        whole = None if exported is dense else dense / MODEL
        variants = Variants(
            self._passes, interface, exported, self.clock, check, data, dense=whole, pruned=self.pruned.share
        )
        made = variants.run()
        found = [kept for v in made if (kept := self._hops.variant(v, variants, reference)) is not None]
        offers = Offers(variants, lambda offer: self._hops.every(offer, reference), self.findings.races)
        found = offers.beside(found)
        for hop in offers.held:
            self.findings.hold(hop)
        for why in variants.refusals.values():
            self.findings.refuse(BudgetError, why if whole is None else f"{why}; without --prune the whole net ships")
        self._check_bytes(found)
        release = Release(self._passes, self._hops, self.findings, self.pruned)
        return release.package(variants, found, reference, release.measure(found, variants.dense))

    def _taken(self) -> set[str]:
        """Digests of the frames that calibrate or judge parity: what is chosen has seen those."""
        return {sample.digest for sample in [*self.job.samples.calibration, *self.job.samples.report]}

    def _labelled(self, interface: Interface) -> tuple[Dataset | None, list[Labelled]]:
        """The samples of ``--eval``: split, and all. Raises `DatasetError`."""
        if self.job.labelled is None:
            return None, []
        counted = dataset.read(self.job.labelled, interface)
        return dataset.split(counted, self._taken()), counted

    def _reference(self, model: Candidate, interface: Interface) -> Reference:
        """What the child's net says to the report frames; ``model`` names that net."""
        frames = list(read_frames([(s.path, s.index) for s in self.job.samples.report]))
        path = self._passes.reference(model, interface) / "reference.safetensors"
        return Reference(path, frames, interface, self._limits.min_margin)

    def _adopted(self, model: Candidate, interface: Interface) -> Reference:
        """From here on the child's net is the pruned one, and so is the reference."""
        recipe = self.job.recipe
        self.host.call("adopt", folder=str(model.folder), shape=recipe.input.shape, batch=recipe.input.batch)
        reference = self._reference(model, interface)
        proof_frames(self.job, reference)
        self._hops.export(model, reference, f"{self.host.reference}, pruned")
        return reference

    @cached_property
    def findings(self) -> Findings:
        return Findings(self.job.force, self.tell)

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self.job, self.work, self.host, self.disk, self.tell, self.threads)

    @cached_property
    def _hops(self) -> Hops:
        return Hops(self._passes, self.findings, self._limits)

    @property
    def _limits(self) -> Limits:
        return self.job.recipe.proof.limits()

    # --- what ends a compilation ----------------------------------------------------------------------------------

    def _check_calibration(self) -> None:
        count = len(self.job.samples.calibration)
        if not count or not self.job.samples.report:
            raise CalibrationError(
                f"{count} frames to calibrate with and {len(self.job.samples.report)} to judge by: both need one at "
                "least; add photos or a video of the place to --calib"
            )
        if count < MIN_CALIBRATION_FRAMES and any(p.precision != "fp32" for p, _ in self.job.plans):
            self.findings.refuse(
                CalibrationError,
                f"{count} calibration frames, at least {MIN_CALIBRATION_FRAMES} wanted: fewer say little about what "
                f"a camera sees; add photos or a video of the place to --calib, {_ADD_UP_TO} in all, of which one in "
                "five judges and does not calibrate",
            )

    def _check_plan(self) -> None:
        if self.job.replay is not None:
            plan.check(self.job.replay, lineage(self.job.source, self.job.samples), tool_versions())
            plan.check_variants(self.job.replay, [p.id for p, _ in self.job.plans])

    def _check_reading(self, dense: Candidate, interface: Interface, data: Dataset | None) -> None:
        """Asks labelled samples whether the recipe reads the net as it was trained; what follows would not see it."""
        if data is None or self.job.replay is not None:
            return
        self.tell.detail("whether the recipe reads the net as it was trained")
        parts = [*data.ranking, *data.search, *data.report]  # fp32 alone answers: nothing is chosen
        chosen, run = misread.asked(interface, parts), compare.on_backend(dense / MODEL)
        answer = lambda view: list(accuracy.answers(run, view, [s.sample for s in chosen]))  # noqa: E731
        if (why := misread.doubt(interface, chosen, answer)) is not None:
            self.findings.refuse(DatasetError, why)

    def _check_bytes(self, found: Sequence[Variant]) -> None:
        if self.job.replay is not None:
            digests = {v.plan.id: d for v in found if (d := decision(v, self.job.calibrator, None).digest)}
            plan.check_bytes(self.job.replay, digests)
