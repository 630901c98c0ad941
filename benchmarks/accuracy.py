"""What INT8 costs in accuracy, untuned, through the real command; and how often it agrees with fp32 beside its peers.

What an INT8 variant takes does not matter here: on a busy machine a small net may seem no faster and would be left out.

- *Fashion-MNIST*: a ResNet and a small vision transformer trained here (benchmarks/train.py), 10,000 tests. The drop is
  paired: both variants answer the same pictures. What is held to the bar is the upper end of the one-sided 95 %
  interval (compiler/evaluation/statistics.py).
- *Clothing*: ImageNet's MobileNetV2 fine-tuned on 3,068 photos; 713 others judge. The interval is printed.
- *ImageNet's MobileNetV2 as it is*: on photos without labels, how often INT8 names the class that fp32 names. The peers
  get the same fp32 file and the same calibration photos, and the best of their options counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import data, nets, side
from benchmarks.release import photos
from benchmarks.results import OUT, Row, tell
from benchmarks.side import Compiled
from benchmarks.train import PLANS, trained
from compiler.data import samples
from compiler.evaluation.statistics import paired_drop
from skerry.execution.backend import load_variant
from skerry.execution.processing import Preprocessor

_BARS = {"fashion_resnet": 0.5, "fashion_vit": 1.0, "clothing_mobilenetv2": None}
_CALIBRATION = 500  # pictures; the compiler keeps a fifth of them to judge with
_EVERY = 20  # one photo of clothing in so many calibrates ImageNet's net, and others judge
_SHIFTS = (4, 8, 12, 16)


def main() -> bool:
    """Measures and tells; whether the bars were met."""
    rows = [row for name, bar in _BARS.items() for row in _drop(name, bar)]
    return tell("accuracy", [*rows, *_agreement()])


def _drop(name: str, bar: float | None) -> list[Row]:
    weights, calibration = trained(name), _calibration(name)
    net = side.compile_net(name, nets.folder(name), calibration, weights, keep_slower=True)
    pictures = PLANS[name].test()
    frames, labels = pictures.frames(), pictures.labels
    reference = right(net, "fp32", frames, labels)
    rows = [Row(f"{name}: fp32", 100 * float(reference.mean()), "%", None, f"{len(labels)} tests")]
    for variant in net.quantized:
        found = right(net, variant, frames, labels)
        lost, won = int((reference & ~found).sum()), int((found & ~reference).sum())
        drop = paired_drop(lost, won, len(labels))
        note = f"{lost} lost, {won} won" + (f"; REFUSED: {net.refused}" if net.refused else "")
        rows += [
            Row(f"{name}, {variant}: drop", drop.points, "points", None, note),
            Row(f"{name}, {variant}: drop at most", drop.at_most, "points", bar, "one-sided 95 %, paired"),
        ]
    return rows


def right(net: Compiled, variant: str, frames: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which frames a variant names rightly [N], through the device's own pre-processing and backend."""
    backend = load_variant(net.root, net.manifest, net.manifest.variant(variant), threads=1)
    preprocess, found = Preprocessor(net.manifest), []
    (tensor,) = backend.inputs.values()
    for frame in frames:
        preprocess(frame, tensor)
        found.append(int(np.argmax(next(iter(backend.run().values())))))
    backend.close()
    return np.array(found) == labels


def _calibration(name: str) -> Path:
    """Training pictures as files, taken evenly."""
    pictures = PLANS[name].train().images
    chosen = pictures[:: len(pictures) // _CALIBRATION][:_CALIBRATION]
    return data.as_files(chosen, OUT / "calibration" / name.partition("_")[0])


# --- agreement with fp32 ---------------------------------------------------------------------------------------------


def imagenet_photos() -> Path:
    """A folder of photos for ImageNet's nets to calibrate with."""
    folder = OUT / "calibration" / "imagenet"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(data.CLOTHING.glob("train/*/*.jpg"))[::_EVERY]:
        (folder / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    return folder


def imagenet() -> tuple[Compiled, Path]:
    """ImageNet's MobileNetV2 compiled, and the input tensors that it was calibrated with."""
    pictures, weights = imagenet_photos(), photos().parent / "weights" / "mobilenet_v2-b0353104.pth"
    net = side.compile_net("mobilenetv2", Path("models/mobilenetv2"), pictures, weights)
    used = [Path(s.path) for s in samples.collect([pictures]).calibration]
    return net, side.tensors(net.manifest, used, side.FOLDER / "mobilenetv2-calibration.npy")


def _agreement() -> list[Row]:
    net, calibration = imagenet()
    peers = side.variants(net, calibration, transformer=False, vnni=side.has_vnni())
    seen = [*sorted(photos().iterdir()), *_unseen()]
    inputs = side.tensors(net.manifest, [f for f in seen if f.suffix in (".jpg", ".png")], side.FOLDER / "photos.npy")
    models = {"fp32": str(net.model("fp32")), **{v: net.runs(v) for v in net.quantized}, **peers}
    out = side.FOLDER.absolute() / "answers.npz"
    side.peer("answer", {"models": models, "inputs": str(inputs), "out": str(out)})
    answers = {name: scores.argmax(1) for name, scores in np.load(out).items()}
    return compare(answers, net.quantized, side.has_vnni(), len(np.load(calibration, mmap_mode="r")))


def _unseen() -> list[Path]:
    """What did not calibrate: the photos that are not for training, and as many of those again."""
    training = sorted(data.CLOTHING.glob("train/*/*.jpg"))
    more = [file for start in _SHIFTS for file in training[start::_EVERY]]
    return [*sorted(f for part in ("test", "validation") for f in data.CLOTHING.glob(f"{part}/*/*.jpg")), *more]


def compare(answers: dict[str, np.ndarray], ours: Sequence[str], vnni: bool, calibrated: int) -> list[Row]:  # noqa: FBT001
    """Rows of agreement: ours on this machine must not disagree more often than the best peer."""
    apart = {name: 100 * float((found != answers["fp32"]).mean()) for name, found in answers.items() if name != "fp32"}
    peers = {name: value for name, value in apart.items() if name not in ours}
    best = min(peers, key=lambda name: peers[name])
    here = next(name for name in ours if ("vnni" in name) == vnni)
    rows = [
        Row(
            f"imagenet mobilenetv2: {here} disagrees with fp32",
            apart[here],
            "%",
            peers[best],
            f"bar: the best peer, {best}; {len(answers['fp32'])} photos, {calibrated} calibrate",
        )
    ]
    others = {name: value for name, value in apart.items() if name != here}
    return rows + [Row(f"imagenet mobilenetv2: {name}", value, "%") for name, value in sorted(others.items())]


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
