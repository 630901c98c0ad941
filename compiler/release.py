"""What a compilation ends with: times, evidence, the plan, the proof that a device will repeat; signed and packed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from compiler import plan
from compiler.candidate import tool_versions
from compiler.climb import Found
from compiler.evaluation.compare import Reference
from compiler.evidence import layers
from compiler.evidence.evidence import Calibration, Evidence, Layer, Timing
from compiler.evidence.report import render_html
from compiler.evidence.tables import DENSE
from compiler.findings import Findings
from compiler.hops import Hops
from compiler.job import Job
from compiler.package import ReleaseFolder, choose_proof_frames, sbom
from compiler.passes import MODEL, Passes
from compiler.plan import Plan
from compiler.pruning.prune import RECORD
from compiler.sources.lineage import lineage
from compiler.tensorrt import lower
from compiler.variants import Variant, Variants, decision
from skerry.errors import ParityError
from skerry.execution import prove
from skerry.manifest import FLOOR, Interface, release_id
from skerry.manifest import Variant as BundleVariant

_MEASURE_S = 2.0  # of timing, about
_PROOF_S, _PROOF_MIB = 600.0, 4096
_LOOKED_AT = 4  # frames that layers' errors are measured on


def proof_frames(job: Job, reference: Reference) -> list[int]:
    """Which report frames prove the release. Raises `ParityError` if none can: the model is sure of nothing."""
    proof = job.recipe.proof
    return choose_proof_frames(reference.interface, reference.answers, proof.limits(), proof.frames)


@dataclass(frozen=True)
class Release:
    """Measures and packages what was found."""

    passes: Passes
    hops: Hops
    findings: Findings
    pruned: Found

    def measure(self, found: Sequence[Variant], dense: Path | None) -> list[Timing]:
        """Times the reference and what this machine can run, one thread each, in turn; and what was pruned."""
        whole = {} if dense is None else {DENSE: dense}
        paths = {name: str(path) for name, path in {**whole, **{v.plan.id: v.path for v in found if v.here}}.items()}
        recipe, backends = self.passes.job.recipe, {v.plan.id: v.plan.backend for v in found}
        shape, outputs = recipe.input.shape, recipe.model.outputs
        asked = {"shape": shape, "models": paths, "seconds": _MEASURE_S, "outputs": outputs, "backends": backends}
        times = self.passes.host.call("measure", **asked)["times_ms"]
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
            for name in [self.passes.host.reference, *whole, *(v.plan.id for v in found)]
        ]

    def package(
        self, variants: Variants, found: Sequence[Variant], reference: Reference, timings: list[Timing]
    ) -> Evidence:
        recipe, interface = self.passes.job.recipe, reference.interface
        folder = ReleaseFolder(self.passes.work.scratch("bundle"), self.passes.disk)
        written = [self._written(folder, v, interface) for v in found]
        chosen = proof_frames(self.passes.job, reference)
        proof = folder.add_proof(chosen, reference, self.hops.limits, recipe.proof.licence, recipe.proof.consent)
        release = release_id(folder.finish(interface, written, proof))
        here = [v.plan.id for v in found if v.here]
        outcome = self._prove(folder.root, here) if here else prove.Outcome()
        if here and outcome.variant is None:
            self.findings.refuse(ParityError, f"the release does not pass its own proof here: {outcome.why}")
        tools, source = tool_versions(), self.passes.job.source
        evidence = Evidence(
            release=release,
            name=interface.name,
            version=interface.version,
            hops=self.findings.hops,
            timings=timings,
            proofs=list(outcome.reports),
            forced=self.findings.forced,
            assumed=source.assumed,
            unmeasured={v.plan.id: why for v in found if (why := self.passes.job.why_unmeasured(v.plan, v.requires))},
            calibration=Calibration(
                digest=self.passes.job.samples.digest(),
                frames=len(self.passes.job.samples.calibration),
                report_frames=len(self.passes.job.samples.report),
            ),
            lineage={**lineage(source, self.passes.job.samples), **self.pruned.lineage},
            passes={v.plan.id: list(v.model.history) for v in found},
            tools=tools,
            machine=[self.passes.job.facts.arch, *self.passes.job.facts.cpu],
            accuracy=list(variants.accuracy.values()),
            search=variants.points,
            left_out=variants.left_out,
            layers={v.plan.id: made for v in found if (made := self._layers(v, variants, reference))},
            repairs=self.findings.repairs,
            races=self.findings.races,
            precisions={v.plan.id: v.plan.precision for v in found},
            max_latency_ms=self.passes.job.budget.max_latency_ms,
            pruned=self.pruned.evidence,
        )
        folder.write("evidence/compile.json", msgspec.json.format(msgspec.json.encode(evidence)))
        if self.pruned.model is not None:
            folder.write(f"evidence/{RECORD}", (self.pruned.model / RECORD).read_bytes())
        folder.write("evidence/report.html", render_html(evidence))
        plan.write(self._plan(variants, found), folder.root / plan.PATH, self.passes.disk)
        folder.write("sbom.json", sbom(release, interface, tools, source.weights or source.file))
        folder.sign(f"{interface.name}@{interface.version}", self.passes.job.key)
        folder.pack(self.passes.job.out)
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
        requires, path = variant.requires, self.hops.drawn(variant, interface)
        if variant.plan.for_tensorrt:
            made = self.passes.engine(variant.plan, requires, path, variant.model)
            path = made / MODEL
            requires = lower.pinned(requires, made.facts["built"]) if "built" in made.facts else requires
        return folder.add_variant(variant.plan, requires, path, self.passes.job.recipe.graph)

    def _plan(self, variants: Variants, found: Sequence[Variant]) -> Plan:
        """The decisions of this compilation, to be built again."""
        labelled, cut = self.passes.job.labelled, self.pruned.cut
        return Plan(
            inputs=lineage(self.passes.job.source, self.passes.job.samples),
            tools=tool_versions(),
            variants=[decision(v, self.passes.job.calibrator, cut.record if cut else None) for v in found],
            left_out=variants.left_out,
            pruned=cut,
            searched={} if labelled is None else {"labelled": variants.labelled_digest},
        )

    def _prove(self, root: Path, variants: list[str]) -> prove.Outcome:
        """The release's own proof, in the same child process that a device would start."""
        request = prove.Request(
            root=str(root.resolve()), variants=variants, limits=FLOOR, threads=1, memory_mib=_PROOF_MIB
        )
        return prove.run(request, _PROOF_S)


def _ratio(times: Mapping[str, list[float]], name: str, base: str | None) -> float | None:
    """Median of the per-round ratios: drift of the machine's speed falls out."""
    if base is None or name == base or name not in times or base not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
