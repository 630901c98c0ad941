"""The search on a small net that is trained here: is what it proposes what is then measured?

A residual net on photos of clothing. Each candidate is built, timed beside fp32 and counted on
samples that chose nothing else; the choice is confirmed on samples that the search never saw. Printed beside it: the
candidates, and how far the model of the search (times and damages that add up) was off. Three minutes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from benchmarks.results import OUT, Row, tell
from compiler.candidate import Work
from compiler.data import dataset
from compiler.data.dataset import Dataset
from compiler.evaluation import compare
from compiler.evaluation.statistics import SLOWER
from compiler.quantization import calibrate, correct, quantize
from compiler.quantization.units import fusion_units
from compiler.search import sensitivity
from compiler.search.budget import Budget
from compiler.search.choice import Trial, front
from compiler.search.outcome import Outcome, named
from compiler.search.search import Search
from compiler.search.subject import OnnxSubject
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.execution.frames import read_frames
from skerry.execution.processing import Preprocessor
from skerry.manifest import FORMAT, Classification, Interface, Preprocess, Tensor

CLOTHING = Path("../shared/data/clothing")
SIZE = 64
_EPOCHS, _BATCH, _RATE = 6, 32, 3e-3
_CALIBRATION, _CORRECTION = 200, 32
_LAYOUT = "u8s8-7bit"
_HELD = 0.05  # a proposal's time held if it is this close to the prediction, or better


class Block(nn.Module):
    """Two convolutions and a way around them; the second one is depthwise and then widens by a 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.two = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, groups=outputs, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Hardswish(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        return F.relu(x + self.two(x))


def net(classes: int) -> nn.Module:
    """[N, 3, 64, 64] to [N, classes]."""
    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    body = [Block(24, 48), Block(48, 96), Block(96, 128)]
    return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, classes))


def interface(labels: list[str]) -> Interface:
    """What a recipe of it says."""
    return Interface(
        format=FORMAT,
        name="clothing",
        version=1,
        task="classification",
        inputs=[Tensor("image", "float32", [1, 3, SIZE, SIZE])],
        outputs=[Tensor("scores", "float32", [1, len(labels)])],
        preprocess=Preprocess(resize="stretch", mean=(0.5,), std=(0.25,)),
        postprocess=Classification(scores="scores"),
        labels=labels,
    )


def pixels(paths: Sequence[Path]) -> torch.Tensor:
    """[N, 3, SIZE, SIZE], as the interface has them; Pillow's resize is ours."""
    images = (Image.open(p).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in paths)
    table = np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in images])
    return torch.from_numpy((table / 255 - 0.5) / 0.25)


def trained(labels: list[str]) -> nn.Module:
    """The net, trained in a minute or two, or as it was the last time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, kept = net(len(labels)), OUT / "search.pth"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    paths = sorted((CLOTHING / "train").glob("*/*.jpg"))
    x, y = pixels(paths), torch.tensor([labels.index(p.parent.name) for p in paths])
    steps = _EPOCHS * (len(x) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(x)).split(_BATCH)[: len(x) // _BATCH]:
            seen = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, x[batch].flip(3), x[batch])
            optimizer.zero_grad()
            F.cross_entropy(model(seen), y[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), kept)
    return model.eval()


def calibration() -> Iterator[np.ndarray]:
    """Inputs that the net was trained on."""
    every = sorted((CLOTHING / "train").glob("*/*.jpg"))
    for path in every[:: len(every) // _CALIBRATION][:_CALIBRATION]:
        yield pixels([path]).numpy()


class _Silent:
    def began(self, name: str) -> None: ...

    def ended(self, name: str, seconds: float | None) -> None: ...


def subject(folder: Path, labels: list[str], work: Work) -> OnnxSubject:
    """The net as the search takes it: exported, prepared, calibrated."""
    torch.onnx.export(
        trained(labels),
        (torch.zeros(1, 3, SIZE, SIZE),),
        folder / "exported.onnx",
        dynamo=True,
        opset_version=20,
        input_names=["image"],
        output_names=["scores"],
        external_data=False,
        verbose=False,
    )
    quantize.prepare(folder / "exported.onnx", folder / "net.onnx")
    model, tensors = onnx.load(folder / "net.onnx"), list(calibration())
    ranges = calibrate.ranges(model, tensors, calibrate.DEFAULT, 1, _unheard)

    def lay_out(target: Path, nodes: Sequence[str], draft: bool) -> None:  # noqa: FBT001 - as the search calls it
        quantized = quantize.laid_out(model, ranges, layout=_LAYOUT, keep_float=nodes)
        if not draft:
            correct.correct_biases(quantized, model, tensors[:_CORRECTION], 1, _unheard)
        target.write_bytes(quantized.SerializeToString(deterministic=True))

    return OnnxSubject(fusion_units(model), folder / "net.onnx", lay_out, _LAYOUT, work, SystemClock())


def _unheard(_text: str) -> None:
    """Progress that nobody reads."""


def labelled(view: Interface) -> Dataset:
    """Photos that the net was not trained on."""
    samples = [s for part in ("test", "validation") for s in dataset.read(CLOTHING / part, view)]
    return dataset.split(samples, set())


def candidates(search: Search, outcome: Outcome) -> Table:
    """Every candidate, fastest first; the front is marked."""
    table = Table("candidate", "predicted", "measured", "at most", "damage", "drop", "", title="candidates")
    best = set(front(list(search.trials)))
    for trial in sorted(search.trials, key=lambda t: t.cost):
        time, damage = search.predicted(trial)
        chosen = outcome.model == search.trials[trial]
        table.add_row(
            named(search.rungs[0], trial.keep),
            f"{time:.3f}",
            f"{trial.cost:.3f}",
            f"{trial.time.at_most:.3f}" if trial.time else "",
            f"{damage:.4f}",
            f"{trial.drop:.2f}",
            "chosen" if chosen else "front" if trial in best else "",
        )
    return table


def damage(search: Search, trial: Trial) -> float:
    """A candidate's divergence from fp32's answers, as the units' was measured."""
    run, base = (compare.on_backend(m) for m in (search.trials[trial], search.rungs[0].float_model))
    pairs = []
    preprocess, tensor = Preprocessor(search.interface), np.zeros((1, 3, SIZE, SIZE), np.float32)
    for frame in read_frames([(s.sample.path, 0) for s in search.data.ranking]):
        preprocess(frame, tensor)
        pairs.append(({"scores": base(tensor)["scores"].copy()}, {"scores": run(tensor)["scores"].copy()}))
    return sensitivity.damage(search.interface, pairs)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Place of each value in order."""
    return np.argsort(np.argsort(np.array(values), kind="stable"), kind="stable").astype(float)


def rows(search: Search, outcome: Outcome) -> list[Row]:
    """The figures."""
    trials = list(search.trials)
    times = [(search.predicted(t)[0], t.cost) for t in trials]
    damages, real = [search.predicted(t)[1] for t in trials], [damage(search, t) for t in trials]
    held = [t for t, (wanted, got) in zip(trials, times, strict=True) if got <= wanted + _HELD and t.drop <= 1.0]
    plain = next(t for t in trials if not t.keep)
    found = [
        Row("units", len(search.rungs[0].units), ""),
        Row("candidates built and measured", len(trials), "", None, f"{len(front(trials))} on the front"),
        Row("time, predicted and measured, apart", statistics.median(abs(a - b) for a, b in times), "of fp32's"),
        Row("damage, predicted and measured, ranks", _correlation(damages, real), "", None, "1 is the same order"),
        Row("candidates that held", 100 * len(held) / len(trials), "%", None, "time as predicted, within 1 point"),
        Row("plain INT8: time", plain.cost, "of fp32's", None, f"{plain.drop:.2f} points on the search's samples"),
    ]
    if not outcome.ships or outcome.time is None or outcome.accuracy is None:
        return [*found, Row("the choice", None, "", None, outcome.words[0])]
    accuracy = outcome.accuracy
    more = f"; within {search.budget.aim:g}: needs {accuracy.needs_more} more" if accuracy.needs_more else ""
    note = f"{accuracy.drop:.2f} on {accuracy.samples} samples{more}"
    return [
        *found,
        Row(
            "the choice: time",
            outcome.time.median,
            "of fp32's",
            None,
            named(search.rungs[0], frozenset(outcome.keep_float)),
        ),
        Row("the choice: time, at most", outcome.time.at_most, "of fp32's", SLOWER, "else fp32 would ship"),
        Row("the choice: drop, at most", accuracy.drop_at_most, "points", None, note),
    ]


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) < 3 or len(set(other)) < 2:
        return float("nan")
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> bool:
    """Measures and tells; whether the bars were met."""
    if not CLOTHING.is_dir():
        print(f"{CLOTHING} is not here: nothing to search with")
        return True
    view = interface(sorted(p.name for p in (CLOTHING / "train").iterdir()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = Work(folder / "work", Disk(), SystemClock(), _Silent())
        console = Console(width=120, highlight=False)
        with console.status("searching") as status:
            made = subject(folder, view.labels, work)
            search = Search("int8", [made], view, labelled(view), Budget(), work, Disk(), status.update)
            outcome = search.run()
        console.print(candidates(search, outcome))
        for words in outcome.words:
            console.print(words)
        return tell("search", rows(search, outcome))


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
