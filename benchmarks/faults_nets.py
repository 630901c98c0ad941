"""The nets that faults are injected into, as a compilation holds them, and the truth about a bent one.

Nothing here checks anything: it makes what the compiler's own checks are given, by its own passes, and counts on
labelled pictures, which no check has read, how a fault moves the metric.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import data, nets
from benchmarks.results import OUT
from compiler.candidate import Candidate, Work
from compiler.data import dataset, samples
from compiler.data.dataset import Dataset, Labelled
from compiler.evaluation import accuracy, compare
from compiler.evaluation.accuracy import Run
from compiler.evaluation.compare import Reference
from compiler.host import Host, open_host
from compiler.job import Job
from compiler.passes import MODEL, Passes, interface_of
from compiler.quantization import quantize
from compiler.repair.repair import Layout
from compiler.sources import recipe
from compiler.sources.recipe import Source
from compiler.targets import target
from compiler.targets.target import VariantPlan
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.execution.device import this_device
from skerry.execution.frames import read_frames
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.parity import agree, proof_decoder
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface, Limits
from skerry.wire import Answer

FOLDER = OUT / "faults"
BENT = FOLDER / "bent.onnx"  # the file that was bent last
LIMIT = 1.0  # points of top-1 or AP50: what a compilation with --max-drop 1 allows
_FASHION = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_CALIBRATION, _EVAL, _TRUTH = 500, 1500, 1000  # pictures of Fashion-MNIST
_IMAGES = 32  # of cells: hundreds of boxes


class Silent:
    """Hears of passes and progress, and says nothing."""

    def began(self, name: str) -> None: ...

    def ended(self, name: str, seconds: float | None) -> None: ...

    def detail(self, text: str) -> None: ...

    def said(self, text: str) -> None: ...

    def hop(self, hop: object) -> None: ...


@dataclass(frozen=True)
class Truth:
    """What a fault does to answers about labelled pictures.

    Attributes:
        drop: points of top-1 or AP50 against the sound net.
        agreement: of the answers that the sound net was sure of, the share that is the same.
    """

    drop: float
    agreement: float

    @property
    def moved(self) -> bool:
        """Past the limit of the metric, or of agreement."""
        return round(self.drop, 6) > LIMIT or self.agreement < Limits().min_agreement

    def __str__(self) -> str:
        return f"{self.drop:+.1f} points, {self.agreement:.0%} agree"


LOST = Truth(100.0, 0.0)  # of a model that does not run


@dataclass
class Net:
    """One compiled net: what each pass made of it, and pictures."""

    name: str
    job: Job
    host: Host
    truth: Sequence[Labelled]
    work: Work = field(init=False)

    def __post_init__(self) -> None:
        self.work = Work(FOLDER / "work", Disk(), SystemClock(), Silent())

    # --- as the compiler makes it ------------------------------------------------------------------------------------

    @cached_property
    def passes(self) -> Passes:
        return Passes(self.job, self.work, self.host, Disk(), Silent(), 1)

    @cached_property
    def loaded(self) -> Candidate:
        return self.passes.load()

    @cached_property
    def interface(self) -> Interface:
        return interface_of(self.job, self.loaded.facts)

    @property
    def limits(self) -> Limits:
        return self.job.recipe.proof.limits()

    @cached_property
    def reference(self) -> Reference:
        return self.reference_for(self.interface)

    def reference_for(self, interface: Interface) -> Reference:
        """What fp32 torch makes of the report frames, behind the training's own pre-processing if the recipe names it.

        Without one it is behind the recipe's, wrong or not, as in a compilation.
        """
        path = self.passes.reference(self.loaded, interface) / "reference.safetensors"
        frames = list(read_frames([(s.path, s.index) for s in self.job.samples.report]))
        return Reference(path, frames, interface, self.limits.min_margin)

    @cached_property
    def exported(self) -> Path:
        return self.passes.export(self.loaded) / MODEL

    @cached_property
    def calibrated(self) -> Candidate:
        return self.passes.calibrate(self.passes.export(self.loaded), self.interface)

    @cached_property
    def layout(self) -> Layout:
        """How the sound INT8 variant is built."""
        return Layout(onnx.load(self.calibrated / MODEL), frozenset(), self.passes.ranges(self.calibrated))

    @cached_property
    def plan(self) -> VariantPlan:
        return next(plan for plan, _ in self.job.plans if plan.precision == "int8")

    @cached_property
    def int8(self) -> Path:
        return self.passes.variant(self.plan, self.calibrated, self.interface) / MODEL

    @cached_property
    def tensors(self) -> list[np.ndarray]:
        """Calibration inputs that biases are corrected on."""
        return self.passes.correction_tensors(self.interface)

    @cached_property
    def eval(self) -> Dataset:
        """The samples of ``--eval``, split as in a compilation."""
        taken = {s.digest for s in [*self.job.samples.calibration, *self.job.samples.report]}
        assert self.job.labelled is not None
        return dataset.split(dataset.read(self.job.labelled, self.interface), taken)

    @cached_property
    def eval_answers(self) -> list[list[Answer]]:
        """The sound fp32 net's, on the samples that report."""
        return answers(compare.on_backend(self.exported), self.interface, self.eval.report)

    def built(self, layout: Layout) -> onnx.ModelProto:
        """INT8 by a layout, biases as they are: what a fault leaves, nothing corrects by itself."""
        return quantize.laid_out(layout.graph, layout.ranges, layout=self.plan.layout, keep_float=layout.keep_float)

    # --- the truth ---------------------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> list[np.ndarray]:
        """The truth's pictures, prepared as the net was trained."""
        return self.inputs_by(self.interface)

    def inputs_by(self, interface: Interface) -> list[np.ndarray]:
        """The truth's pictures, prepared by another interface."""
        preprocess, entry, made = Preprocessor(interface), self.interface.inputs[0], []
        for frame in read_frames([(s.sample.path, 0) for s in self.truth]):
            made.append(np.zeros(entry.shape, entry.dtype))
            preprocess(frame, made[-1])
        return made

    @cached_property
    def sound(self) -> list[list[Answer]]:
        """The sound fp32 net's answers to the truth's pictures."""
        return self.say(compare.on_backend(self.exported), self.interface, self.inputs)

    def say(self, run: Run, interface: Interface, inputs: Sequence[np.ndarray]) -> list[list[Answer]]:
        """Answers, the unsure ones included."""
        decode, preprocess, found = proof_decoder(interface), Preprocessor(interface), []
        tensor = np.zeros(self.interface.inputs[0].shape, self.interface.inputs[0].dtype)
        frame = None
        for index, value in enumerate(inputs):
            if interface.task == "detection" or frame is None:  # geometry matters to boxes alone
                (frame,) = read_frames([(self.truth[index].sample.path, 0)])
                geometry = preprocess(frame, tensor)
            found.append(decode(run(value), geometry, self.limits.min_margin))
        return found

    def judge(
        self, run: Run | None, interface: Interface | None = None, inputs: Sequence[np.ndarray] | None = None
    ) -> Truth:
        """What becomes of the answers if the net runs so, is read so, or is fed so. None: it does not run."""
        if run is None:
            return LOST
        try:
            said = self.say(run, interface or self.interface, self.inputs if inputs is None else inputs)
        except Exception:  # noqa: BLE001 - a bent graph may fail in any way
            return LOST
        return self.judged(said)

    @cached_property
    def _together(self) -> np.ndarray:
        return np.concatenate(self.inputs)

    @cached_property
    def _sound_scores(self) -> np.ndarray:
        return self._scores(self.exported)

    def _scores(self, model: Path) -> np.ndarray:
        """Probabilities [N, classes] of a classifier whose batch is open: many pictures at once, for speed alone."""
        session = ort.InferenceSession(model, session_options(1), providers=[PROVIDER])
        parts = [session.run(None, {self.interface.inputs[0].name: part})[0] for part in _in_parts(self._together)]
        scores = np.concatenate(parts).astype(np.float64)
        raised = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))

    def judge_file(self, model: Path) -> Truth:
        """The truth about a classifier's file."""
        try:
            found, sound = self._scores(model), self._sound_scores
        except Exception:  # noqa: BLE001 - a bent graph may fail in any way
            return LOST
        names = [self.interface.labels.index(s.label or "") for s in self.truth]
        right = [(scores.argmax(1) == names).mean() for scores in (sound, found)]
        two = np.sort(sound, 1)[:, -2:]
        sure = two[:, 1] - two[:, 0] >= self.limits.min_margin
        return Truth(100 * float(right[0] - right[1]), float((sound.argmax(1) == found.argmax(1))[sure].mean()))

    def judged(self, said: list[list[Answer]]) -> Truth:
        """The same of answers."""
        found = accuracy.compare(self.interface, self.truth, self.sound, said)
        share = agree(self.interface, self.limits, self.sound, said)
        return Truth(found.drop.points, share.share)


def _in_parts(inputs: np.ndarray, size: int = 100) -> list[np.ndarray]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def answers(run: Run, interface: Interface, labelled: Sequence[Labelled]) -> list[list[Answer]]:
    """What a model says about labelled samples, by the compiler's own path."""
    return list(accuracy.answers(run, interface, [s.sample for s in labelled]))


def loaded(model: onnx.ModelProto) -> Run | None:
    """A model as a device runs it, or None if it does not load."""
    BENT.write_bytes(model.SerializeToString())
    try:
        return compare.on_backend(BENT)
    except Exception:  # noqa: BLE001 - ONNX Runtime's own kinds
        return None


# --- which nets there are ---------------------------------------------------------------------------------------------


@cache
def net(name: str) -> Net:
    """One of the nets, trained if it is not there."""
    return {"resnet": _fashion, "vit": _fashion, "clothing": _clothing, "cells": _cells}[name](name)


NETS = ("resnet", "vit", "clothing", "cells")


def job(source: Source, calibration: Path, labelled: Path | None) -> Job:
    """A compilation for CPUs without VNNI."""
    facts = this_device()
    return Job(
        source=source,
        samples=samples.collect([calibration]),
        plans=target.plans([target.load("x86-64", facts)]),
        facts=facts,
        key=ec.generate_private_key(ec.SECP256R1()),
        out=FOLDER / "net.skb",
        labelled=labelled,
    )


def _open(name: str, source: Source, calibration: Path, labelled: Path, truth: Sequence[Labelled]) -> Net:
    return Net(name, job(source, calibration, labelled), open_host(source, lambda _text: None), truth)


def _fashion(name: str) -> Net:
    full = f"fashion_{name}"
    folder = nets.folder(full)
    (folder / "labels.txt").write_text("\n".join(_FASHION))
    overrides = recipe.Overrides(weights=_weights(full), labels=folder / "labels.txt", batch=(1, 4))
    pictures, train = data.fashion("t10k"), data.fashion("train").images
    calibration = data.as_files(train[:: len(train) // _CALIBRATION][:_CALIBRATION], OUT / "calibration" / "fashion")
    every = _by_label(pictures.images[: _EVAL + _TRUTH], pictures.labels, FOLDER / "fashion")
    source = recipe.load(str(folder), overrides)
    return _open(name, source, calibration, every / "eval", _labelled(every / "truth"))


def _weights(name: str) -> Path:
    from benchmarks.train import trained  # noqa: PLC0415 - torch, where something must be trained

    return trained(name)


def _by_label(images: np.ndarray, labels: np.ndarray, folder: Path) -> Path:
    """Pictures as files in a folder per label: the first for ``eval``, the rest for ``truth``."""
    from PIL import Image  # noqa: PLC0415 - once

    if not (folder / ".written").is_file():
        for index, picture in enumerate(images):
            place = folder / ("eval" if index < _EVAL else "truth") / _FASHION[labels[index]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{index:05}.png")
        (folder / ".written").touch()
    return folder


def _labelled(folder: Path) -> list[Labelled]:
    files = sorted(file for file in folder.glob("*/*") if file.suffix in (".png", ".jpg"))
    return [Labelled(sample=samples.Sample(str(f), 0, f.name), label=f.parent.name) for f in files]


def _clothing(name: str) -> Net:
    from benchmarks import search  # noqa: PLC0415 - torch

    labels = sorted(p.name for p in (search.CLOTHING / "train").iterdir())
    folder = _pt2("clothing_small", search.trained(labels), (1, 3, search.SIZE, search.SIZE))
    (folder / "labels.txt").write_text("\n".join(labels))
    source = recipe.load(str(folder / "net.pt2"), recipe.Overrides(labels=folder / "labels.txt"))
    chosen = sorted((search.CLOTHING / "train").glob("*/*.jpg"))[::6]
    calibration = _copied(chosen, OUT / "calibration" / "clothing-small")
    return _open(name, source, calibration, search.CLOTHING / "test", _labelled(search.CLOTHING / "validation"))


def _cells(name: str) -> Net:
    from benchmarks import cells  # noqa: PLC0415 - torch

    OUT.mkdir(parents=True, exist_ok=True)
    folder = _pt2("cells", cells.trained(OUT / "cells.pth"), (1, 3, cells.HEIGHT, cells.WIDTH))
    (folder / "labels.txt").write_text("\n".join(cells.LABELS))
    source = recipe.load(str(folder / "net.pt2"), recipe.Overrides(labels=folder / "labels.txt"))
    files = {part: _part(cells.BCCD, part) for part in ("trainval", "test")}
    calibration = _copied(files["trainval"][::2], OUT / "calibration" / "cells")
    held = _copied([f for image in files["test"] for f in (image, _voc(image))], FOLDER / "cells")
    made = _open(name, source, calibration, held, ())
    made.truth = dataset.read(held, made.interface)[:_IMAGES]
    return made


def _part(root: Path, part: str) -> list[Path]:
    names = (root / "ImageSets" / "Main" / f"{part}.txt").read_text().split()
    return [root / "JPEGImages" / f"{name}.jpg" for name in names]


def _voc(image: Path) -> Path:
    return image.parents[1] / "Annotations" / f"{image.stem}.xml"


def _copied(files: Sequence[Path], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        shutil.copy(file, folder / (file.name if file.suffix == ".xml" or folder.name == "cells" else f"{number}.jpg"))
    return folder


def _pt2(name: str, made: object, shape: tuple[int, ...]) -> Path:
    """The folder of a net that is saved as an exported program."""
    import torch  # noqa: PLC0415 - for nets that are trained here

    folder = nets.folder(name)
    torch.export.save(torch.export.export(made, (torch.zeros(shape),)), folder / "net.pt2")
    return folder
