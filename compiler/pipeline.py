"""The passes of a compilation, in order: load, reference, export, quantize, compare, measure, package.

A pass that makes files is cached by what went into it (compiler/candidate.py), so a second run resumes behind the last
one that ended. Comparing and measuring make no files and are done anew each time: they speak of here and now.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric import ec

from compiler import calibrate, compare, correct, quantize
from compiler.batches import compare_batches
from compiler.candidate import Candidate, Work, file_digest, tool_versions
from compiler.compare import MIN_EXPORT_SQNR_DB, Hop, Reference
from compiler.evidence import Calibration, Evidence, Timing
from compiler.foreign import digests
from compiler.host import Host
from compiler.package import ReleaseFolder, choose_proof_frames, sbom
from compiler.recipe import MIN_CALIBRATION_FRAMES, Recipe, Source
from compiler.report import render_html
from compiler.samples import Sample, Samples, spread
from compiler.target import VariantPlan
from skerry.disk import Disk
from skerry.errors import CalibrationError, CompileError, ConfigError, FormatError, ParityError
from skerry.execution import prove
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.manifest import FLOOR, Detection, DeviceFacts, Interface, Limits, Requires, Tensor, release_id, why_not
from skerry.manifest import FORMAT as BUNDLE_FORMAT

_MEASURE_S = 2.0  # of timing, about
_CODE = {".py", ".json", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".txt"}
_MAX_SOURCE_FILES = 2000
_PROOF_S, _PROOF_MIB = 600.0, 4096


@dataclass(frozen=True)
class Job:
    """One compilation: what, from which data, for what, signed by whom, and where to.

    Attributes:
        force: goes on after a refusal and puts it into the evidence; no limit is ever loosened.
    """

    source: Source
    samples: Samples
    plans: Sequence[tuple[VariantPlan, Requires]]
    facts: DeviceFacts
    key: ec.EllipticCurvePrivateKey
    out: Path
    force: bool = False

    @property
    def recipe(self) -> Recipe:
        return self.source.recipe


class Tell(Protocol):
    """Hears what goes on."""

    def hop(self, hop: Hop) -> None: ...

    def detail(self, text: str) -> None: ...


@dataclass
class Compilation:
    """Runs a `Job`: `run` leaves the bundle at ``job.out`` and returns the evidence."""

    job: Job
    work: Work
    host: Host
    disk: Disk
    tell: Tell
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    hops: list[Hop] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)

    def run(self) -> Evidence:
        """Raises `CompileError` and its kin (skerry/errors.py)."""
        self._check_calibration()
        loaded = self._load()
        interface = _interface(self.job, loaded.facts)
        frames = list(read_frames([(s.path, s.index) for s in self.job.samples.report]))
        path = self._reference(loaded, interface) / "reference.safetensors"
        reference = Reference(path, frames, interface, self._limits.min_margin)
        self._hold(compare.compare_preprocessing(reference, self._limits))
        exported = self._export(loaded)
        self._compare_export(exported, reference)
        models = {plan.id: self._variant(plan, exported, interface) for plan, _ in self.job.plans}
        for plan, requires in self.job.plans:
            if plan.precision != "fp32":
                self._compare_variant(plan, requires, models[plan.id], exported, reference)
            if batch := self.job.recipe.input.batch:
                self._hold(compare_batches(plan.id, models[plan.id] / "model.onnx", reference, batch))
        return self._package(models, reference, self._measure(models))

    @property
    def _limits(self) -> Limits:
        return self.job.recipe.proof.limits()

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
        if count < MIN_CALIBRATION_FRAMES and any(plan.precision != "fp32" for plan, _ in self.job.plans):
            self._refuse(
                CalibrationError,
                f"{count} calibration frames, at least {MIN_CALIBRATION_FRAMES} wanted: fewer say little about what "
                "a camera sees; add photos or a video of the place to --calib",
            )

    # --- the passes that make files --------------------------------------------------------------------------------

    def _load(self) -> Candidate:
        """Builds the model in the child and looks at it. Makes no file: its key names the code and the weights."""
        recipe = self.job.recipe
        config = {**_origin(self.job.source), "model": recipe.model, "input": recipe.input}
        if isinstance(recipe.postprocess, Detection):
            config["rows"] = recipe.postprocess.max_boxes
        return self.work.cached("load", 2, [], config, lambda _folder: self.host.load())

    def _reference(self, loaded: Candidate, interface: Interface) -> Candidate:
        """fp32 torch on the report frames."""
        model, samples = self.job.recipe.model, self.job.samples.report
        own = None if model.preprocess else self.job.recipe.preprocess
        config = {"samples": [s.digest for s in samples], "theirs": model.preprocess, "ours": own}

        def make(folder: Path) -> Mapping[str, Any]:
            self.disk.replace(folder / "interface.json", msgspec.json.encode(interface))
            return self.host.call(
                "reference",
                samples=[[s.path, s.index] for s in samples],
                preprocess=model.preprocess,
                interface=str(folder / "interface.json"),
                outputs=model.outputs,
                out=str(folder / "reference.safetensors"),
            )

        return self.work.cached("reference", 1, [loaded], config, make)

    def _graph(self) -> dict[str, Any]:
        recipe = self.job.recipe
        return {
            "shape": recipe.input.shape,
            "input_name": recipe.input.name,
            "outputs": recipe.model.outputs,
            "batch": recipe.input.batch,
        }

    def _export(self, loaded: Candidate) -> Candidate:
        """One ONNX file: torch.export's, or the foreign one as adopted."""
        return self.work.cached(
            "export",
            1,
            [loaded],
            self._graph(),
            lambda folder: self.host.call("export", **self._graph(), out=str(folder / "model.onnx")),
        )

    def _variant(self, plan: VariantPlan, exported: Candidate, interface: Interface) -> Candidate:
        """The model as one variant ships it."""
        if plan.precision == "fp32":
            return exported
        calibrated = self._calibrate(exported, interface)

        def make(folder: Path) -> Mapping[str, Any]:
            original = onnx.load(calibrated / "model.onnx")
            found = msgspec.json.decode((calibrated / "ranges.json").read_bytes(), type=dict[str, tuple[float, float]])
            tensors = self._correction_tensors(interface)
            quantized = quantize.laid_out(original, found, layout=plan.layout)
            correct.correct_biases(quantized, original, tensors, self.threads, self.tell.detail)
            self.disk.replace(folder / "model.onnx", quantized.SerializeToString(deterministic=True))
            return {}

        config = {"plan": plan, "frames": correct.FRAMES, **self._calibration_config(interface)}
        return self.work.cached(f"quantize-{plan.id}", 2, [calibrated], config, make)

    def _calibrate(self, exported: Candidate, interface: Interface) -> Candidate:
        """The ranges of every value over the calibration frames."""

        def make(folder: Path) -> Mapping[str, Any]:
            quantize.prepare(exported / "model.onnx", folder / "model.onnx")
            model = onnx.load(folder / "model.onnx")
            tensors = self._tensors(interface, self.job.samples.calibration)
            found = calibrate.ranges(model, tensors, calibrate.DEFAULT, self.threads, self.tell.detail)
            self.disk.replace(folder / "ranges.json", msgspec.json.encode(found))
            return {"frames": len(self.job.samples.calibration)}

        return self.work.cached("calibrate", 2, [exported], self._calibration_config(interface), make)

    def _calibration_config(self, interface: Interface) -> dict[str, Any]:
        return {"samples": self.job.samples.digest(), "preprocess": interface.preprocess}

    def _correction_tensors(self, interface: Interface) -> list[np.ndarray[Any, Any]]:
        """Input tensors of some calibration frames, in the order of their digests: names do not matter."""
        chosen = spread(self.job.samples.calibration, correct.FRAMES)
        in_order = sorted(chosen, key=lambda s: (s.path, s.index))
        pairs = zip((s.digest for s in in_order), self._tensors(interface, in_order), strict=True)
        return [tensor for _, tensor in sorted(pairs, key=lambda pair: pair[0])]

    def _tensors(self, interface: Interface, samples: Sequence[Sample]) -> Iterator[np.ndarray[Any, Any]]:
        preprocess, entry = Preprocessor(interface), interface.inputs[0]
        for frame in read_frames([(s.path, s.index) for s in samples]):
            tensor = np.zeros(entry.shape, entry.dtype)
            preprocess(frame, tensor)
            yield tensor

    # --- comparing and measuring -----------------------------------------------------------------------------------

    def _compare_export(self, exported: Candidate, reference: Reference) -> None:
        model, origin = exported / "model.onnx", self.host.reference
        name = f"{origin} → {'adopted' if self.job.recipe.model.onnx else 'ONNX fp32'}"
        run = compare.on_onnxruntime(model)
        hop = compare.compare_model(name, reference, run, self._limits, MIN_EXPORT_SQNR_DB, origin)
        if hop.failed:
            layers = self.work.scratch("layers") / "layers.safetensors"
            graph = onnx.load(model)
            names = [name for node in graph.graph.node for name in node.output]
            tensor = reference.input(0)
            self.host.call("layers", **self._graph(), tensor=str(reference.path), names=names, out=str(layers))
            hop = _explained(hop, compare.diverging_from_torch(graph, layers, tensor))
        self._hold(hop)

    def _compare_variant(
        self, plan: VariantPlan, requires: Requires, model: Candidate, exported: Candidate, reference: Reference
    ) -> None:
        path, quantized = model / "model.onnx", onnx.load(model / "model.onnx")
        here = self._why_unmeasured(plan, requires) is None
        run = compare.on_onnxruntime(path) if here else compare.literally(quantized)
        hop = compare.compare_model(
            f"ONNX → {plan.id}", reference, run, self._limits, self._limits.min_sqnr_db, self.host.reference
        )
        if hop.failed:
            original, tensor = onnx.load(exported / "model.onnx"), reference.input(0)
            hop = _explained(hop, compare.diverging_from_fp32(quantized, original, tensor, self._limits.min_sqnr_db))
        self._hold(hop)

    def _why_unmeasured(self, plan: VariantPlan, requires: Requires) -> str | None:
        """Why this machine cannot run a variant, or None if it can."""
        return why_not(plan.backend, requires, self.job.facts)

    def _measure(self, models: Mapping[str, Candidate]) -> list[Timing]:
        """Times the reference and what this machine can run, one thread each, in turn."""
        here = {plan.id for plan, requires in self.job.plans if self._why_unmeasured(plan, requires) is None}
        paths = {name: str(models[name] / "model.onnx") for name in models if name in here}
        recipe = self.job.recipe
        times = self.host.call(
            "measure", shape=recipe.input.shape, models=paths, seconds=_MEASURE_S, outputs=recipe.model.outputs
        )["times_ms"]
        fp32 = next((plan.id for plan, _ in self.job.plans if plan.precision == "fp32"), None)
        sizes = {name: (models[name] / "model.onnx").stat().st_size for name in models}
        return [
            Timing(
                model=name,
                median_ms=statistics.median(times[name]) if name in times else None,
                times_torch=_ratio(times, name, "torch"),
                times_fp32=_ratio(times, name, fp32),
                bytes=sizes.get(name, 0),
            )
            for name in [self.host.reference, *models]
        ]

    # --- packaging -------------------------------------------------------------------------------------------------

    def _package(self, models: Mapping[str, Candidate], reference: Reference, timings: list[Timing]) -> Evidence:
        recipe, interface = self.job.recipe, reference.interface
        folder = ReleaseFolder(self.work.scratch("bundle"), self.disk)
        variants = [
            folder.add_variant(plan, requires, models[plan.id] / "model.onnx") for plan, requires in self.job.plans
        ]
        chosen = choose_proof_frames(interface, reference.answers, self._limits, recipe.proof.frames)
        proof = folder.add_proof(chosen, reference, self._limits, recipe.proof.licence, recipe.proof.consent)
        release = release_id(folder.finish(interface, variants, proof))
        here = [plan.id for plan, requires in self.job.plans if self._why_unmeasured(plan, requires) is None]
        outcome = self._prove(folder.root, here) if here else prove.Outcome()
        if here and outcome.variant is None:
            self._refuse(ParityError, f"the release does not pass its own proof here: {outcome.why}")
        evidence = Evidence(
            release=release,
            name=interface.name,
            version=interface.version,
            hops=self.hops,
            timings=timings,
            proofs=list(outcome.reports),
            forced=self.forced,
            assumed=self.job.source.assumed,
            unmeasured={p.id: why for p, requires in self.job.plans if (why := self._why_unmeasured(p, requires))},
            calibration=Calibration(
                digest=self.job.samples.digest(),
                frames=len(self.job.samples.calibration),
                report_frames=len(self.job.samples.report),
            ),
            lineage=_lineage(self.job),
            passes={name: list(model.history) for name, model in models.items()},
            tools=tool_versions(),
            machine=[self.job.facts.arch, *self.job.facts.cpu],
        )
        folder.write("evidence/compile.json", msgspec.json.format(msgspec.json.encode(evidence)))
        folder.write("evidence/report.html", render_html(evidence))
        folder.write(
            "sbom.json", sbom(release, interface, tool_versions(), self.job.source.weights or self.job.source.file)
        )
        folder.sign(f"{interface.name}@{interface.version}", self.job.key)
        folder.pack(self.job.out)
        return evidence

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


def _interface(job: Job, facts: Mapping[str, Any]) -> Interface:
    """What goes in and comes out, from the recipe and what the model returned."""
    recipe, types = job.recipe, facts.get("types", {})
    interface = Interface(
        format=BUNDLE_FORMAT,
        name=recipe.name,
        version=recipe.version,
        task="detection" if isinstance(recipe.postprocess, Detection) else "classification",
        inputs=[Tensor(recipe.input.name, facts.get("input_type", "float32"), recipe.input.shape)],
        outputs=[Tensor(name, types.get(name, "float32"), shape) for name, shape in facts["outputs"].items()],
        preprocess=recipe.preprocess,
        postprocess=recipe.postprocess,
        labels=job.source.labels,
        batch=recipe.input.batch,
    )
    try:
        interface.check()
    except FormatError as exc:
        raise ConfigError(f"the recipe {recipe.name}: {exc}") from exc
    return interface


def _explained(hop: Hop, layer: str) -> Hop:
    return msgspec.structs.replace(hop, failed=f"{hop.failed}; {layer}")


def _ratio(times: Mapping[str, list[float]], name: str, base: str | None) -> float | None:
    """Median of the per-round ratios: drift of the machine's speed falls out."""
    if base is None or name == base or name not in times or base not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def _lineage(job: Job) -> dict[str, str]:
    """Digests of what the release was made from."""
    return {
        **_origin(job.source),
        "recipe": hashlib.sha256(msgspec.json.encode(job.recipe)).hexdigest(),
        "calibration": job.samples.digest(),
    }


def _origin(source: Source) -> dict[str, str]:
    """Digests of the code, the weights, and the model's own files, whichever there are."""
    found = {} if source.file is None else {f"file {name}": digest for name, digest in digests(source.file).items()}
    if source.file is None or source.recipe.model.preprocess:
        found["code"] = code_digest(source.root)
    if source.weights:
        found["weights"] = file_digest(source.weights)
    return found


def code_digest(root: Path) -> str:
    """Names the user's code: every file below its root that a builder is made of or reads, but for the recipe."""
    files = sorted(p for p in root.rglob("*") if p.suffix in _CODE and not _is_hidden(p.relative_to(root)))
    if len(files) > _MAX_SOURCE_FILES:
        raise CompileError(f"{root} holds {len(files)} files of code; point at the folder of the model alone")
    text = "\n".join(f"{p.relative_to(root).as_posix()} {file_digest(p)}" for p in files if p.name != "recipe.toml")
    return hashlib.sha256(text.encode()).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
