"""Pre-processing in numpy against Pillow's resize with numpy around it: time as a ratio, and the largest difference.

Both take an RGB frame to MobileNetV2's input: shorter side to 256, centre 224, ImageNet's mean and deviation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import Row, ratio, tell
from skerry.config import read_toml
from skerry.execution.processing import Frame, Geometry, Preprocessor
from skerry.manifest import FORMAT, Classification, Interface, Preprocess, Tensor

SIZES = {"640x272": (272, 640), "1280x720": (720, 1280), "1920x1080": (1080, 1920)}
_TURNS = 60
_BAR = 1.5
_LEVEL = 1 / 255 / 0.224 + 1e-5


def interface() -> Interface:
    """MobileNetV2's, as far as it matters here."""
    recipe = read_toml(Path("models/mobilenetv2/recipe.toml"))
    values = recipe["preprocess"]
    return Interface(
        format=FORMAT,
        name="mobilenetv2",
        version=1,
        task="classification",
        inputs=[Tensor("image", "float32", recipe["input"]["shape"])],
        outputs=[Tensor("logits", "float32", [1, 1000])],
        preprocess=Preprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}),
        postprocess=Classification(scores="logits"),
        labels=[],
    )


def with_pillow(described: Interface) -> Callable[[Frame], np.ndarray]:
    """The same by Pillow, as training code does it."""
    mean, std = (np.array(v, np.float32) for v in (described.preprocess.mean, described.preprocess.std))

    def run(frame: Frame) -> np.ndarray:
        geometry = Geometry(described.preprocess, frame.shape[:2], (224, 224))
        height, width = geometry.scaled
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
        cut = image.crop((-geometry.left, -geometry.top, 224 - geometry.left, 224 - geometry.top))
        return ((np.asarray(cut, np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]

    return run


def seconds(function: Callable[[Frame], object], frame: Frame) -> float:
    """One call."""
    started = time.perf_counter()
    function(frame)
    return time.perf_counter() - started


def main() -> bool:
    """Measures and tells; whether the bars were met."""
    described = interface()
    pillow, rows = with_pillow(described), []
    for name, size in SIZES.items():
        frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        preprocess, tensor = Preprocessor(described), np.zeros((1, 3, 224, 224), np.float32)

        def ours(picture: Frame, run: Preprocessor = preprocess, out: np.ndarray = tensor) -> None:
            run(picture, out)

        turns = [(seconds(ours, frame), seconds(pillow, frame), seconds(ours, frame)) for _ in range(_TURNS)][5:]
        first, theirs, second = zip(*turns, strict=True)
        apart = np.abs(tensor - pillow(frame))
        rows += [
            Row(f"{name}: time, ours / Pillow", ratio(first, theirs), "x", _BAR),
            Row(f"{name}: A/A control, off by", abs(ratio(first, second) - 1), ""),
            Row(f"{name}: ours", statistics.median(first) * 1e3, "ms"),
            Row(f"{name}: largest difference", float(apart.max()), "", _LEVEL, "one grey level of 255 is 0.018"),
            Row(
                f"{name}: values that differ",
                float((apart > 1e-5).mean()) * 100,
                "%",
                None,
                "on noise; ties that round apart",
            ),
        ]
    return tell("preprocess", rows)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
