"""The order of a compilation: load, reference, export, quantize or search, compare, measure, package.

What makes files is a pass (compiler/passes.py) and resumes. Comparing and measuring make none and are done anew each
time: they speak of here and now.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import msgspec
import onnx

from compiler import plan, pruned
from compiler.beside import Offers
from compiler.candidate import Candidate, Work, tool_versions
from compiler.climb import Found
from compiler.data import dataset
from compiler.data.dataset import Dataset, Labelled
from compiler.evaluation import accuracy, compare, misread
from compiler.evaluation.batches import compare_batches
from compiler.evaluation.compare import MIN_EXPORT_SQNR_DB, Hop, Reference
from compiler.evidence import layers
from compiler.evidence.evidence import Calibration, Evidence, Layer, Race, Repair, Timing
from compiler.evidence.report import render_html
from compiler.evidence.tables import DENSE
from compiler.host import Host
from compiler.ingraph import release as ingraph
from compiler.job import Job, Tell
from compiler.package import ReleaseFolder, choose_proof_frames, sbom
from compiler.passes import MODEL, Passes, interface_of
from compiler.plan import Plan
from compiler.pruning.prune import RECORD
from compiler.repair.mending import OnnxBench, mend_onnx
from compiler.repair.repair import Layout
from compiler.sources.lineage import lineage
from compiler.sources.recipe import MIN_CALIBRATION_FRAMES
from compiler.targets.target import VariantPlan
from compiler.tensorrt import lower
from compiler.variants import Variant, Variants, decision, latencies_not_held
from skerry.clock import Clock
from skerry.disk import Disk
from skerry.errors import BudgetError, CalibrationError, CompileError, DatasetError, ParityError
from skerry.execution import prove
from skerry.execution.frames import read_frames
from skerry.manifest import FLOOR, Interface, Limits, release_id
from skerry.manifest import Variant as BundleVariant

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
    hops: list[Hop] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    races: list[Race] = field(default_factory=list)
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
        self._proof_frames(reference)  # what gives no proof is refused now, and not after hours of searching
        self._hold(compare.compare_preprocessing(reference, self._limits))
        dense = self._passes.export(loaded)
        self._compare_export(dense, reference, self.host.reference)
        self._check_reading(dense, interface, data)
        self.pruned = pruned.found(self._passes, loaded, dense / MODEL, interface, counted, data, self.clock)
        exported = self.pruned.model or dense
        if exported is not dense:
            reference = self._adopted(exported, interface)
        check = lambda plan, path: self._hop(plan, path, reference, here=True).failed  # noqa: E731
        whole = None if exported is dense else dense / MODEL
        variants = Variants(
            self._passes, interface, exported, self.clock, check, data, dense=whole, pruned=self.pruned.share
        )
        made = variants.run()
        found = [kept for v in made if (kept := self._compare_variant(v, variants, reference)) is not None]
        offers = Offers(variants, lambda offer: self._every_hop(offer, reference), self.races)
        found = offers.beside(found)
        for hop in offers.held:
            self._hold(hop)
        for why in variants.refusals.values():
            self._refuse(BudgetError, why if whole is None else f"{why}; without --prune the whole net ships")
        self._check_bytes(found)
        return self._package(variants, found, reference, self._measure(found, variants.dense))

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
        self._proof_frames(reference)
        self._compare_export(model, reference, f"{self.host.reference}, pruned")
        return reference

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self.job, self.work, self.host, self.disk, self.tell, self.threads)

    @property
    def _limits(self) -> Limits:
        return self.job.recipe.proof.limits()

    # --- what ends a compilation ----------------------------------------------------------------------------------

    def _refuse(self, error: type[CompileError], why: str) -> None:
        """Ends the compilation, or with --force remembers what it went past."""
        if not self.job.force:
            raise error(why)
        self.forced.append(why)

    def _hold(self, hop: Hop) -> None:
        self.hops.append(hop)
        self.tell.hop(hop)
        if hop.failed:
            self._refuse(ParityError, f"{hop.name}: {hop.failed}")

    def _check_calibration(self) -> None:
        count = len(self.job.samples.calibration)
        if not count or not self.job.samples.report:
            raise CalibrationError(
                f"{count} frames to calibrate with and {len(self.job.samples.report)} to judge by: both need one at "
                "least; add photos or a video of the place to --calib"
            )
        if count < MIN_CALIBRATION_FRAMES and any(p.precision != "fp32" for p, _ in self.job.plans):
            self._refuse(
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
            self._refuse(DatasetError, why)

    def _check_bytes(self, found: Sequence[Variant]) -> None:
        if self.job.replay is not None:
            digests = {v.plan.id: d for v in found if (d := decision(v, self.job.calibrator, None).digest)}
            plan.check_bytes(self.job.replay, digests)

    # --- comparing and measuring ----------------------------------------------------------------------------------

    def _compare_export(self, exported: Candidate, reference: Reference, origin: str) -> None:
        model = exported / MODEL
        name = f"{origin} → {'adopted' if self.job.recipe.model.onnx else 'ONNX fp32'}"
        run = compare.on_backend(model)
        hop = compare.compare_model(name, reference, run, self._limits, MIN_EXPORT_SQNR_DB, origin)
        if hop.failed:
            values = self.work.scratch("layers") / "layers.safetensors"
            graph = onnx.load(model)
            names = [name for node in graph.graph.node for name in node.output]
            arguments = {"tensor": str(reference.path), "names": names, "out": str(values)}
            self.host.call("layers", **self._passes.graph(), **arguments)
            layer = compare.diverging_from_torch(graph, values, reference.input(0))
            hop = msgspec.structs.replace(hop, failed=f"{hop.failed}; {layer}")
        self._hold(hop)

    def _compare_variant(self, variant: Variant, variants: Variants, reference: Reference) -> Variant | None:
        """Holds a variant to the reference, and what is drawn around it to the runtime; None if it no longer pays."""
        if variant.plan.precision != "fp32" or variant.plan.backend != "onnxrt":
            kept = self._compare_quantized(variant, variants, reference)
            if kept is None:
                return None
            variant = kept
        for hop in self._hops_around(variant, reference):
            self._hold(hop)
        return variant

    def _hops_around(self, variant: Variant, reference: Reference) -> Iterator[Hop]:
        """What a variant is held to besides its answers: several images at once, and what is drawn around it."""
        if batch := self.job.recipe.input.batch:
            yield compare_batches(variant.plan.id, variant.path, reference, batch)
        if graph := self.job.recipe.graph:
            name = f"{variant.plan.id} with its processing in the graph"
            drawn, backend = self._drawn(variant, reference.interface), variant.plan.backend if variant.here else None
            yield ingraph.compare_in_graph(name, reference, variant.path, drawn, graph, self._limits, backend)

    def _every_hop(self, offer: Variant, reference: Reference) -> Iterator[Hop]:
        yield self._hop(offer.plan, offer.path, reference, here=offer.here)
        yield from self._hops_around(offer, reference)

    def _compare_quantized(self, variant: Variant, variants: Variants, reference: Reference) -> Variant | None:
        hop = self._hop(variant.plan, variant.path, reference, here=variant.here)
        if hop.failed and (self.job.repair or variant.repaired) and not variant.plan.for_tensorrt:
            fixed = variants.timed(self._mended(variant, variants.calibrated, reference, hop))
            if fixed is None:
                return None
            variant = variants.held(fixed)  # anew: what was counted before is another file's
            hop = self._hop(variant.plan, variant.path, reference, here=variant.here)
        if hop.failed:
            original, exported = onnx.load(variants.calibrated / MODEL), onnx.load(variants.exported / MODEL)
            first, quantized = reference.input(0), onnx.load(variant.path)
            layer = compare.diverging_from_fp32(quantized, original, first, self._limits.min_sqnr_db, exported)
            hop = msgspec.structs.replace(hop, failed=f"{hop.failed}; {layer}")
        self._hold(hop)
        return variant

    def _hop(self, plan: VariantPlan, model: Path, reference: Reference, *, here: bool) -> Hop:
        """A variant's file against the reference: run as a device does, or literally where this machine cannot."""
        run = compare.on_backend(model, plan.backend) if here else compare.literally(onnx.load(model))
        name, limits = f"ONNX → {plan.id}", self._limits
        return compare.compare_model(name, reference, run, limits, limits.min_sqnr_db, self.host.reference)

    def _mended(self, variant: Variant, calibrated: Candidate, reference: Reference, failed: Hop) -> Variant:
        """The variant as far as it can be mended. A pass: what it does depends on no clock."""
        passes = self._passes

        def make(folder: Path) -> Mapping[str, object]:
            tensors = passes.correction_tensors(reference.interface)
            bench = OnnxBench(variant.plan.layout, reference, self._limits, tensors, failed, self.threads)
            layout = Layout(onnx.load(calibrated / MODEL), frozenset(variant.keep_float), passes.ranges(calibrated))
            found = mend_onnx(variant.plan.id, onnx.load(variant.path), layout, bench, self.tell.detail)
            self.disk.replace(folder / MODEL, bench.build(found.layout).SerializeToString(deterministic=True))
            return {"repair": msgspec.to_builtins(found.repair)}

        config = {"layout": passes.layout(variant.plan, reference.interface, variant.keep_float), "failed": failed}
        made = self.work.cached(f"repair-{variant.plan.id}", 2, [variant.model, calibrated], config, make)
        self.repairs.append(msgspec.convert(made.facts["repair"], Repair))
        return replace(variant, model=made, repaired=True)

    def _drawn(self, variant: Variant, interface: Interface) -> Path:
        """The file that ships: the variant, with what the recipe wants around it."""
        graph = self.job.recipe.graph
        if graph is None:
            return variant.path
        around = ingraph.around(graph, interface, self._limits, variant.plan.backend)

        def make(folder: Path) -> Mapping[str, object]:
            ingraph.write(variant.path, folder / MODEL, interface, around, self.disk)
            return {}

        config = {"graph": graph, "interface": interface, "limits": self._limits}
        return self.work.cached(f"draw-{variant.plan.id}", ingraph.VERSION, [variant.model], config, make) / MODEL

    def _measure(self, found: Sequence[Variant], dense: Path | None) -> list[Timing]:
        """Times the reference and what this machine can run, one thread each, in turn; and what was pruned."""
        whole = {} if dense is None else {DENSE: dense}
        paths = {name: str(path) for name, path in {**whole, **{v.plan.id: v.path for v in found if v.here}}.items()}
        recipe, backends = self.job.recipe, {v.plan.id: v.plan.backend for v in found}
        shape, outputs = recipe.input.shape, recipe.model.outputs
        asked = {"shape": shape, "models": paths, "seconds": _MEASURE_S, "outputs": outputs, "backends": backends}
        times = self.host.call("measure", **asked)["times_ms"]
        fp32 = next((v.plan.id for v in found if v.plan.precision == "fp32"), None)
        sizes = {name: path.stat().st_size for name, path in {**whole, **{v.plan.id: v.path for v in found}}.items()}
        against = {v.plan.id: v.time for v in found if v.time is not None}  # what decided; else from these rounds
        return [
            Timing(
                model=name,
                median_ms=statistics.median(times[name]) if name in times else None,
                times_torch=_ratio(times, name, "torch"),
                times_fp32=against[name].median if name in against else _ratio(times, name, fp32),
                times_fp32_at_most=against[name].at_most if name in against else None,
                bytes=sizes.get(name, 0),
            )
            for name in [self.host.reference, *whole, *(v.plan.id for v in found)]
        ]

    def _proof_frames(self, reference: Reference) -> list[int]:
        frames = self.job.recipe.proof.frames
        return choose_proof_frames(reference.interface, reference.answers, self._limits, frames)

    # --- packaging ------------------------------------------------------------------------------------------------

    def _package(
        self, variants: Variants, found: Sequence[Variant], reference: Reference, timings: list[Timing]
    ) -> Evidence:
        recipe, interface = self.job.recipe, reference.interface
        folder = ReleaseFolder(self.work.scratch("bundle"), self.disk)
        written = [self._written(folder, v, interface) for v in found]
        chosen = self._proof_frames(reference)
        proof = folder.add_proof(chosen, reference, self._limits, recipe.proof.licence, recipe.proof.consent)
        release = release_id(folder.finish(interface, written, proof))
        here = [v.plan.id for v in found if v.here]
        outcome = self._prove(folder.root, here) if here else prove.Outcome()
        if here and outcome.variant is None:
            self._refuse(ParityError, f"the release does not pass its own proof here: {outcome.why}")
        tools, source = tool_versions(), self.job.source
        evidence = Evidence(
            release=release,
            name=interface.name,
            version=interface.version,
            hops=self.hops,
            timings=timings,
            proofs=list(outcome.reports),
            forced=self.forced,
            assumed=source.assumed,
            unmeasured={v.plan.id: why for v in found if (why := self.job.why_unmeasured(v.plan, v.requires))},
            calibration=Calibration(
                digest=self.job.samples.digest(),
                frames=len(self.job.samples.calibration),
                report_frames=len(self.job.samples.report),
            ),
            lineage={**lineage(source, self.job.samples), **self.pruned.lineage},
            passes={v.plan.id: list(v.model.history) for v in found},
            tools=tools,
            machine=[self.job.facts.arch, *self.job.facts.cpu],
            accuracy=list(variants.accuracy.values()),
            search=variants.points,
            left_out=variants.left_out,
            layers={v.plan.id: made for v in found if (made := self._layers(v, variants, reference))},
            repairs=self.repairs,
            races=self.races,
            precisions={v.plan.id: v.plan.precision for v in found},
            max_latency_ms=self.job.budget.max_latency_ms,
            pruned=self.pruned.evidence,
        )
        folder.write("evidence/compile.json", msgspec.json.format(msgspec.json.encode(evidence)))
        if self.pruned.model is not None:
            folder.write(f"evidence/{RECORD}", (self.pruned.model / RECORD).read_bytes())
        folder.write("evidence/report.html", render_html(evidence))
        plan.write(self._plan(variants, found), folder.root / plan.PATH, self.disk)
        folder.write("sbom.json", sbom(release, interface, tools, source.weights or source.file))
        folder.sign(f"{interface.name}@{interface.version}", self.job.key)
        folder.pack(self.job.out)
        return evidence

    def _layers(self, variant: Variant, variants: Variants, reference: Reference) -> list[Layer]:
        """Each layer of what differs from the exported graph: what was asked, what was built here, its error."""
        if variant.model == variants.exported:
            return []
        tensors = [reference.input(index) for index in range(min(_LOOKED_AT, len(reference.frames)))]
        real = layers.real_here(variant.path, variant.plan.backend) if variant.here else None
        original, exported = onnx.load(variants.calibrated / MODEL), onnx.load(variants.exported / MODEL)
        return layers.describe(original, onnx.load(variant.path), tensors, exported=exported, real=real)

    def _written(self, folder: ReleaseFolder, variant: Variant, interface: Interface) -> BundleVariant:
        """A variant's files in the release's folder; an engine belongs to the very TensorRT that built it."""
        requires, path = variant.requires, self._drawn(variant, interface)
        if variant.plan.for_tensorrt:
            made = self._passes.engine(variant.plan, requires, path, variant.model)
            path = made / MODEL
            requires = lower.pinned(requires, made.facts["built"]) if "built" in made.facts else requires
        return folder.add_variant(variant.plan, requires, path, self.job.recipe.graph)

    def _plan(self, variants: Variants, found: Sequence[Variant]) -> Plan:
        """The decisions of this compilation, to be built again."""
        labelled, cut = self.job.labelled, self.pruned.cut
        return Plan(
            inputs=lineage(self.job.source, self.job.samples),
            tools=tool_versions(),
            variants=[decision(v, self.job.calibrator, cut.record if cut else None) for v in found],
            left_out=variants.left_out,
            pruned=cut,
            searched={} if labelled is None else {"labelled": variants.labelled_digest},
        )

    def _prove(self, root: Path, variants: list[str]) -> prove.Outcome:
        """The release's own proof, in the same child process that a device would start."""
        request = prove.Request(
            root=str(root.resolve()), variants=variants, limits=FLOOR, threads=1, memory_mib=_PROOF_MIB
        )
        try:
            done = subprocess.run(  # noqa: S603 - our own module
                prove.command(),
                input=msgspec.json.encode(request),
                capture_output=True,
                timeout=_PROOF_S,
                env=prove.environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return prove.timed_out(_PROOF_S)
        return prove.interpret(done.returncode, done.stdout, done.stderr)


def _ratio(times: Mapping[str, list[float]], name: str, base: str | None) -> float | None:
    """Median of the per-round ratios: drift of the machine's speed falls out."""
    if base is None or name == base or name not in times or base not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
