"""Each hop of a compilation, held to the one before: the export to the user's model, every variant to the reference.

None of it makes files that ship but two passes: a variant that is mended, and what is drawn around a net.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx

from compiler.candidate import Candidate
from compiler.evaluation import compare
from compiler.evaluation.batches import compare_batches
from compiler.evaluation.compare import MIN_EXPORT_SQNR_DB, Hop, Reference
from compiler.evidence.evidence import Repair
from compiler.findings import Findings
from compiler.ingraph import release as ingraph
from compiler.passes import MODEL, Passes
from compiler.repair.mending import OnnxBench, mend_onnx
from compiler.repair.repair import Layout
from compiler.targets.target import VariantPlan
from compiler.variants import Variant, Variants
from skerry.manifest import Interface, Limits


@dataclass(frozen=True)
class Hops:
    """Compares; what is out of tolerance goes to the findings."""

    passes: Passes
    findings: Findings
    limits: Limits

    def export(self, exported: Candidate, reference: Reference, origin: str) -> None:
        """Holds the export to the user's own model; what fails names the first layer that diverges."""
        model = exported / MODEL
        name = f"{origin} → {'adopted' if self.passes.job.recipe.model.onnx else 'ONNX fp32'}"
        run = compare.on_backend(model)
        hop = compare.compare_model(name, reference, run, self.limits, MIN_EXPORT_SQNR_DB, origin)
        if hop.failed:
            values = self.passes.work.scratch("layers") / "layers.safetensors"
            graph = onnx.load(model)
            names = [name for node in graph.graph.node for name in node.output]
            arguments = {"tensor": str(reference.path), "names": names, "out": str(values)}
            self.passes.host.call("layers", **self.passes.graph(), **arguments)
            layer = compare.diverging_from_torch(graph, values, reference.input(0))
            hop = msgspec.structs.replace(hop, failed=f"{hop.failed}; {layer}")
        self.findings.hold(hop)

    def variant(self, variant: Variant, variants: Variants, reference: Reference) -> Variant | None:
        """Holds a variant to the reference, and what is drawn around it to the runtime; None if it no longer pays."""
        if variant.plan.precision != "fp32" or variant.plan.backend != "onnxrt":
            kept = self._quantized(variant, variants, reference)
            if kept is None:
                return None
            variant = kept
        for hop in self._around(variant, reference):
            self.findings.hold(hop)
        return variant

    def _around(self, variant: Variant, reference: Reference) -> Iterator[Hop]:
        """What a variant is held to besides its answers: several images at once, and what is drawn around it."""
        if batch := self.passes.job.recipe.input.batch:
            yield compare_batches(variant.plan.id, variant.path, reference, batch)
        if graph := self.passes.job.recipe.graph:
            name = f"{variant.plan.id} with its processing in the graph"
            drawn, backend = self.drawn(variant, reference.interface), variant.plan.backend if variant.here else None
            yield ingraph.compare_in_graph(name, reference, variant.path, drawn, graph, self.limits, backend)

    def every(self, offer: Variant, reference: Reference) -> Iterator[Hop]:
        """All that an offer is held to."""
        yield self.hop(offer.plan, offer.path, reference, here=offer.here)
        yield from self._around(offer, reference)

    def _quantized(self, variant: Variant, variants: Variants, reference: Reference) -> Variant | None:
        hop = self.hop(variant.plan, variant.path, reference, here=variant.here)
        if hop.failed and (self.passes.job.repair or variant.repaired) and not variant.plan.for_tensorrt:
            fixed = variants.timed(self._mended(variant, variants.calibrated, reference, hop))
            if fixed is None:
                return None
            variant = variants.held(fixed)  # anew: what was counted before is another file's
            hop = self.hop(variant.plan, variant.path, reference, here=variant.here)
        if hop.failed:
            original, exported = onnx.load(variants.calibrated / MODEL), onnx.load(variants.exported / MODEL)
            first, quantized = reference.input(0), onnx.load(variant.path)
            layer = compare.diverging_from_fp32(quantized, original, first, self.limits.min_sqnr_db, exported)
            hop = msgspec.structs.replace(hop, failed=f"{hop.failed}; {layer}")
        self.findings.hold(hop)
        return variant

    def hop(self, plan: VariantPlan, model: Path, reference: Reference, *, here: bool) -> Hop:
        """A variant's file against the reference: run as a device does, or literally where this machine cannot."""
        run = compare.on_backend(model, plan.backend) if here else compare.literally(onnx.load(model))
        name, limits = f"ONNX → {plan.id}", self.limits
        return compare.compare_model(name, reference, run, limits, limits.min_sqnr_db, self.passes.host.reference)

    def _mended(self, variant: Variant, calibrated: Candidate, reference: Reference, failed: Hop) -> Variant:
        """The variant as far as it can be mended. A pass: what it does depends on no clock."""
        passes = self.passes

        def make(folder: Path) -> Mapping[str, object]:
            tensors = passes.correction_tensors(reference.interface)
            bench = OnnxBench(variant.plan.layout, reference, self.limits, tensors, failed, self.passes.threads)
            layout = Layout(onnx.load(calibrated / MODEL), frozenset(variant.keep_float), passes.ranges(calibrated))
            found = mend_onnx(variant.plan.id, onnx.load(variant.path), layout, bench, self.passes.tell.detail)
            self.passes.disk.replace(folder / MODEL, bench.build(found.layout).SerializeToString(deterministic=True))
            return {"repair": msgspec.to_builtins(found.repair)}

        config = {"layout": passes.layout(variant.plan, reference.interface, variant.keep_float), "failed": failed}
        made = self.passes.work.cached(f"repair-{variant.plan.id}", 2, [variant.model, calibrated], config, make)
        self.findings.repairs.append(msgspec.convert(made.facts["repair"], Repair))
        return replace(variant, model=made, repaired=True)

    def drawn(self, variant: Variant, interface: Interface) -> Path:
        """The file that ships: the variant, with what the recipe wants around it."""
        graph = self.passes.job.recipe.graph
        if graph is None:
            return variant.path
        around = ingraph.around(graph, interface, self.limits, variant.plan.backend)

        def make(folder: Path) -> Mapping[str, object]:
            ingraph.write(variant.path, folder / MODEL, interface, around, self.passes.disk)
            return {}

        config = {"graph": graph, "interface": interface, "limits": self.limits}
        return (
            self.passes.work.cached(f"draw-{variant.plan.id}", ingraph.VERSION, [variant.model], config, make) / MODEL
        )
