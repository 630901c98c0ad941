"""The passes that make files: load, reference, export, calibrate, lay out.

Each is cached by what went into it (compiler/candidate.py), so a second run resumes behind the last one that ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from compiler.candidate import Candidate, Work, file_digest
from compiler.data.samples import Sample, check_readable, spread
from compiler.host import Host
from compiler.job import Job, Tell
from compiler.quantization import calibrate, correct, equalize, quantize
from compiler.quantization.qdq import Range
from compiler.sources.lineage import origin
from compiler.targets.target import VariantPlan
from compiler.tensorrt import lower
from skerry.disk import Disk
from skerry.errors import ConfigError, FormatError
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.manifest import FORMAT, Detection, Interface, Requires, Tensor

MODEL, RANGES = "model.onnx", "ranges.json"


@dataclass(frozen=True)
class Passes:
    """The passes of one `Job`."""

    job: Job
    work: Work
    host: Host
    disk: Disk
    tell: Tell
    threads: int

    def frames(self) -> None:
        """Looks whether every photo can be read, once: before the minutes of work, not in their midst."""
        digests = sorted(s.digest for s in [*self.job.samples.calibration, *self.job.samples.report])

        def make(_folder: Path) -> Mapping[str, Any]:
            self.tell.detail(f"looking at {len(digests):,} frames")
            check_readable(self.job.samples)
            return {}

        self.work.cached("frames", 1, [], digests, make)

    def load(self) -> Candidate:
        """Builds the model in the child and looks at it. Makes no file: its key names the code and the weights."""
        self.frames()
        recipe = self.job.recipe
        config = {**origin(self.job.source), "model": recipe.model, "input": recipe.input}
        if isinstance(recipe.postprocess, Detection):
            config["rows"] = recipe.postprocess.max_boxes
        return self.work.cached("load", 3, [], config, lambda _folder: self.host.load())

    def reference(self, loaded: Candidate, interface: Interface) -> Candidate:
        """The reference's fp32 outputs on the report frames."""
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

        return self.work.cached("reference", 2, [loaded], config, make)

    def graph(self) -> dict[str, Any]:
        """What the child's jobs want to know of the graph to make."""
        recipe = self.job.recipe
        return {
            "shape": recipe.input.shape,
            "input_name": recipe.input.name,
            "outputs": recipe.model.outputs,
            "batch": recipe.input.batch,
        }

    def export(self, loaded: Candidate) -> Candidate:
        """One ONNX file: torch.export's, or the foreign one as adopted."""
        make = lambda folder: self.host.call("export", **self.graph(), out=str(folder / MODEL))  # noqa: E731
        return self.work.cached("export", 1, [loaded], self.graph(), make)

    def calibrate(self, exported: Candidate, interface: Interface) -> Candidate:
        """The model as layouts want it, and the range of every value over the calibration frames."""

        def make(folder: Path) -> Mapping[str, Any]:
            quantize.prepare(exported / MODEL, folder / MODEL)
            some = spread(self.job.samples.calibration, equalize.FRAMES)
            looks = self._tensors(interface, some)
            model = equalize.equalize(onnx.load(folder / MODEL), looks, self.threads, self.tell.detail)
            self.disk.replace(folder / MODEL, model.SerializeToString(deterministic=True))
            tensors = self._tensors(interface, self.job.samples.calibration)
            found = calibrate.ranges(model, tensors, self.job.calibrator, self.threads, self.tell.detail)
            self.disk.replace(folder / RANGES, msgspec.json.encode(found))
            return {"frames": len(self.job.samples.calibration)}

        return self.work.cached("calibrate", 4, [exported], self._calibration(interface), make)

    def variant(
        self, plan: VariantPlan, calibrated: Candidate, interface: Interface, keep_float: Collection[str] = ()
    ) -> Candidate:
        """The model as one variant for CPUs ships it, or in TensorRT's precision."""
        if plan.for_tensorrt:
            return self.tensorrt(plan, calibrated, interface, keep_float)

        def make(folder: Path) -> Mapping[str, Any]:
            self.lay_out(plan, calibrated, interface, folder / MODEL, keep_float)
            return {}

        return self.work.cached(f"quantize-{plan.id}", 3, [calibrated], self.layout(plan, interface, keep_float), make)

    def tensorrt(
        self, plan: VariantPlan, calibrated: Candidate, interface: Interface, keep_float: Collection[str] = ()
    ) -> Candidate:
        """The graph in a precision of TensorRT's: the same for every target that asks for it."""

        def make(folder: Path) -> Mapping[str, Any]:
            tensors = self.correction_tensors(interface) if plan.precision == "int8" else ()
            source = lower.Calibrated(onnx.load(calibrated / MODEL), self.ranges(calibrated), tensors, keep_float)
            written, facts = lower.write(source, plan.precision, self.tell.detail)
            self.disk.replace(folder / MODEL, written.SerializeToString(deterministic=True))
            return {"written": msgspec.to_builtins(facts)}

        config = {"keep": sorted(keep_float), "frames": correct.FRAMES, **self._calibration(interface)}
        return self.work.cached(f"tensorrt-{plan.precision}", 1, [calibrated], config, make)

    def engine(self, plan: VariantPlan, requires: Requires, model: Path, made: Candidate) -> Candidate:
        """What a TensorRT variant ships: the graph and how it is built, and for an RTX card the engine."""

        def make(folder: Path) -> Mapping[str, Any]:
            batch = self.job.recipe.input.batch or (1, 1)
            written = onnx.load(model)
            built = lower.lower(written, folder, plan, requires, self.tell.detail, self.disk, batch=batch)
            return {} if built is None else {"built": msgspec.to_builtins(built)}

        config = {"plan": plan, "requires": requires, "model": file_digest(model)}
        return self.work.cached(f"engine-{plan.id}", 1, [made], config, make)

    def ranges(self, calibrated: Candidate) -> dict[str, Range]:
        """What `calibrate` found."""
        return msgspec.json.decode((calibrated / RANGES).read_bytes(), type=dict[str, Range])

    def layout(self, plan: VariantPlan, interface: Interface, keep_float: Collection[str] = ()) -> dict[str, Any]:
        """All that decides what `lay_out` writes, besides the model."""
        kept = sorted(keep_float)
        how = {"layout": plan.layout, "writer": quantize.VERSION, "frames": correct.FRAMES, "keep": kept}
        return {**how, **self._calibration(interface)}

    def lay_out(
        self,
        plan: VariantPlan,
        calibrated: Candidate,
        interface: Interface,
        target: Path,
        keep_float: Collection[str],
        *,
        draft: bool = False,
    ) -> None:
        """Writes the model in the variant's layout; a draft's biases are not corrected."""
        original = onnx.load(calibrated / MODEL)
        quantized = quantize.laid_out(original, self.ranges(calibrated), layout=plan.layout, keep_float=keep_float)
        if not draft:
            tensors = self.correction_tensors(interface)
            correct.correct_biases(quantized, original, tensors, self.threads, self.tell.detail)
        self.disk.replace(target, quantized.SerializeToString(deterministic=True))

    def _calibration(self, interface: Interface) -> dict[str, Any]:
        digest, how = self.job.samples.digest(), self.job.calibrator
        return {"samples": digest, "preprocess": interface.preprocess, "calibrator": how}

    def correction_tensors(self, interface: Interface) -> list[np.ndarray[Any, Any]]:
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


def interface_of(job: Job, facts: Mapping[str, Any]) -> Interface:
    """What goes in and comes out, from the recipe and what the model returned."""
    recipe, types = job.recipe, facts.get("types", {})
    interface = Interface(
        format=FORMAT,
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
    _check_labels(interface)
    return interface


def _check_labels(interface: Interface) -> None:
    """Labels are told by their place: one line too few or too many, and every answer may have a wrong name."""
    scores = next(t.shape[-1] for t in interface.outputs if t.name == interface.postprocess.scores)
    if interface.labels and len(interface.labels) != scores:
        raise ConfigError(
            f"the recipe {interface.name}: {len(interface.labels)} labels, and the model gives {scores} scores; "
            "expected one label a score, in its order (blank lines are none)"
        )
