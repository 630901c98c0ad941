"""A published face detector: `.pth` to a bundle, to a device, to the same boxes as the ONNX file its authors published.

The yardstick shares nothing with Skerry but ONNX Runtime: resizing, decoding and suppression are written out here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import needs
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from shell import STRANGERS, Shell

pytestmark = pytest.mark.slow

NET = STRANGERS / "rfb320"
HEIGHT, WIDTH = 240, 320
THRESHOLD, CLEARLY = 0.7, 0.75  # the recipe's, and how much a score must have for its box to be missed
SAME_BOX = 0.7

_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from net import build
net = build()
net.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True))
inputs = np.load(sys.argv[3])
with torch.no_grad():
    found = [net.eval()(torch.from_numpy(one[None])) for one in inputs]
np.savez(sys.argv[4], scores=torch.cat([s for s, _ in found]).numpy(), boxes=torch.cat([b for _, b in found]).numpy())
"""

_TARGET = """
description = "one variant, so that the device has no choice"
arch = []
[[variant]]
id = "{precision}"
backend = "onnxrt"
precision = "{precision}"
layout = "{layout}"
source = "a test of {precision} on any CPU"
"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Faces:
    """Real frames that show faces: a film, and pictures cut out of a portrait."""

    film: Path
    to_calibrate: Path
    to_watch: Path


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    portrait, film = needs.asset("photos/astronaut.png"), needs.asset("video/carphone_pristine.mp4")
    folder = tmp_path_factory.mktemp("faces")
    return Faces(film, cuttings(portrait, folder / "calibrate", 1, 60), cuttings(portrait, folder / "watch", 2, 30))


def cuttings(portrait: Path, folder: Path, seed: int, count: int) -> Path:
    """Pictures of all sizes around the face in the portrait."""
    folder.mkdir()
    random, image = np.random.default_rng(seed), Image.open(portrait).convert("RGB")
    for number in range(count):
        width = int(random.integers(150, 450))
        height = int(width * random.uniform(0.6, 0.9))
        left = int(np.clip(225 - width / 2 + random.integers(-50, 50), 0, 512 - width))
        top = int(np.clip(120 - height / 2 + random.integers(-20, 50), 0, 512 - height))
        image.crop((left, top, left + width, top + height)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("home"))


# The yardstick


def resized(frame: np.ndarray) -> np.ndarray:
    """Stretched to the net's size by plain bilinear, each axis by the two nearest pixels, in whole numbers."""

    def axis(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, length - 1), at - low

    pixels = frame.astype(np.float64)
    low, high, share = axis(frame.shape[0], HEIGHT)
    pixels = pixels[low] * (1 - share)[:, None, None] + pixels[high] * share[:, None, None]
    low, high, share = axis(frame.shape[1], WIDTH)
    pixels = pixels[:, low] * (1 - share)[None, :, None] + pixels[:, high] * share[None, :, None]
    return np.floor(pixels + 0.5)


def prepared(frame: np.ndarray) -> np.ndarray:
    return ((resized(frame) - 127) / 128).transpose(2, 0, 1)[None].astype(np.float32)


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


class Published:
    """The authors' own ONNX file."""

    def __init__(self, file: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it lists its weights as inputs too, and is warned of each
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def raw(self, tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, boxes = self._session.run(["scores", "boxes"], {"input": tensor})
        return scores, boxes

    def __call__(self, frame: np.ndarray) -> list[tuple[float, Box]]:
        """Faces, best first: corners as fractions of the frame, cut off at its border."""
        scores, boxes = self.raw(prepared(frame))
        strong = [i for i in np.argsort(-scores[0, :, 1], kind="stable") if scores[0, i, 1] >= THRESHOLD]
        kept: list[tuple[float, Box]] = []
        for index in strong:
            box = tuple(float(v) for v in boxes[0, index])
            if all(overlap(box, other) <= 0.3 for _, other in kept):
                kept.append((float(scores[0, index, 1]), box))
        return [(score, tuple(min(max(v, 0.0), 1.0) for v in box)) for score, box in kept]


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]


def film(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# The net


def test_our_net_is_the_published_one(data: Path, faces: Faces, shell: Shell, tmp_path: Path) -> None:
    published = Published(data / "face" / "version-RFB-320.onnx")
    noise = np.random.default_rng(0).normal(size=(3, 3, HEIGHT, WIDTH)).astype(np.float32)
    real = [prepared(frame) for frame in [*pictures(faces.to_watch)[:5], *film(faces.film)[:3]]]
    inputs = np.concatenate([noise, *real])
    np.save(tmp_path / "inputs.npy", inputs)

    weights = data / "face" / "version-RFB-320.pth"
    shell.python(_RUN, NET, weights, tmp_path / "inputs.npy", tmp_path / "outputs.npz")

    with np.load(tmp_path / "outputs.npz") as ours:
        for index, tensor in enumerate(inputs):
            scores, boxes = published.raw(tensor[None])
            assert np.abs(ours["scores"][index] - scores[0]).max() < 1e-4
            assert np.abs(ours["boxes"][index] - boxes[0]).max() < 1e-4


# The whole way


def compiled(shell: Shell, precision: str, data: Path, faces: Faces, folder: Path) -> Path:
    """A bundle with one variant; the passes of both precisions share a work directory."""
    target, out = folder / "target.toml", folder / "face.skb"
    target.write_text(_TARGET.format(precision=precision, layout="float" if precision == "fp32" else "u8s8-7bit"))
    weights = data / "face" / "version-RFB-320.pth"
    calibration = ["--calib", faces.film, "--calib", faces.to_calibrate]
    said = shell.skerry("compile", NET, "--weights", weights, *calibration, "--target", target, "-o", out)
    assert said.code == 0, said.err
    return out


def watched(shell: Shell, bundle: Path, faces: Faces, folder: Path) -> dict[tuple[str, int], list[tuple[float, Box]]]:
    """What a real agent tells of each frame of both sources."""
    config, events = folder / "agent.toml", folder / "events.jsonl"
    config.write_text(f'data = "{folder / "device"}"\ntrust = ["{shell.public_key}"]\n[events]\nwhen = "every"\n')
    sources = ["--source", faces.film, "--source", faces.to_watch]
    words = ["--config", config, "--model", bundle, *sources, "--every", "--jsonl", events, "--quiet"]
    said = shell.skerry("agent", "run", *words)
    assert said.code == 0, said.err
    lines = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    return {
        (line["source"], line["frame"]): [(a["score"], tuple(a["box"])) for a in line["answers"]]
        for line in lines
        if line["kind"] == "seen"
    }


def matches(ours: list[tuple[float, Box]], theirs: list[tuple[float, Box]]) -> list[float]:
    """For each clear box of one side, how well the best box of the other side covers it; 0 if there is none."""
    return [
        max((overlap(box, other) for _, other in others), default=0.0)
        for some, others in ((ours, theirs), (theirs, ours))
        for score, box in some
        if score >= CLEARLY
    ]


@pytest.mark.parametrize(("precision", "mean_iou"), [("int8", 0.9), ("fp32", 0.99)])
def test_a_device_sees_the_faces_that_the_published_model_sees(
    precision: str,
    mean_iou: float,
    data: Path,
    faces: Faces,
    shell: Shell,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    bundle = compiled(shell, precision, data, faces, tmp_path)

    seen = watched(shell, bundle, faces, tmp_path)

    published = Published(data / "face" / "version-RFB-320.onnx")
    frames = {(faces.film.name, n): frame for n, frame in enumerate(film(faces.film))}
    frames |= {(faces.to_watch.name, n): frame for n, frame in enumerate(pictures(faces.to_watch))}
    assert seen.keys() == frames.keys()
    ious = [iou for key, frame in frames.items() for iou in matches(seen[key], published(frame))]
    assert len(ious) >= 2 * 140  # a face in nearly every frame, looked for from both sides
    record_testsuite_property(
        f"faces {precision}", f"{len(ious)} boxes, IoU mean {np.mean(ious):.3f}, least {min(ious):.3f}"
    )
    assert min(ious) >= SAME_BOX, (precision, len(ious), np.mean(ious), min(ious))
    assert np.mean(ious) >= mean_iou, (precision, len(ious), np.mean(ious), min(ious))
