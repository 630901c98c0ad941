"""What TensorRT's layouts cost ImageNet's MobileNetV2 on photos and video, as ONNX Runtime computes them literally.

No GPU: every Q/DQ pair where it stands, every fp16 value rounded where it is stored. Frames that judge never calibrate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.preprocess import interface
from benchmarks.results import Row, tell
from compiler.data import samples
from compiler.data.samples import Sample
from compiler.graph.onnxfile import Probe
from compiler.host import Host
from compiler.quantization import quantize
from compiler.tensorrt import lower
from compiler.tensorrt.lower import Calibrated
from skerry.execution.frames import read_frames
from skerry.execution.parity import Noise
from skerry.execution.processing import Preprocessor

ASSETS, MODEL = Path("assets"), Path("models/mobilenetv2")
_CALIBRATION, _CORRECTION = 120, 16


def exported(folder: Path) -> onnx.ModelProto:
    """The net as a compilation exports and prepares it."""
    weights = str((ASSETS / "weights" / "mobilenet_v2-b0353104.pth").resolve())
    load = {"build": "model.py:build", "weights": weights, "shape": [1, 3, 224, 224], "outputs": ["logits"]}
    with Host(MODEL, load, lambda _text: None) as host:
        graph = {"shape": load["shape"], "input_name": "image", "outputs": ["logits"]}
        host.call("export", **graph, out=str(folder / "net.onnx"))
    quantize.prepare(folder / "net.onnx", folder / "prepared.onnx")
    return onnx.load(folder / "prepared.onnx")


def tensors(found: Sequence[Sample]) -> list[np.ndarray]:
    """Frames as the net takes them."""
    preprocess, made = Preprocessor(interface()), []
    for frame in read_frames([(sample.path, sample.index) for sample in found]):
        made.append(np.zeros((1, 3, 224, 224), np.float32))
        preprocess(frame, made[-1])
    return made


def judged(name: str, made: onnx.ModelProto, model: onnx.ModelProto, frames: Sequence[np.ndarray]) -> list[Row]:
    """Noise and answers against fp32."""
    fp32, literal = (Probe(m, ["logits"], threads=1, literal=True) for m in (model, made))
    noise, same = Noise(), 0
    for frame in frames:
        ((_, wanted),), ((_, found),) = fp32(frame), literal(frame)
        noise.add(wanted, found)
        same += int(wanted.argmax() == found.argmax())
    note = f"{same} of {len(frames)} first answers are fp32's"
    return [Row(f"{name}: signal to noise", noise.db(), "dB", note=note)]


def main() -> bool:
    """Measures and tells; there is no bar, a recipe's limit is 15 dB."""
    frames = samples.collect([ASSETS / "photos", ASSETS / "video"])
    calibration, report = tensors(samples.spread(frames.calibration, _CALIBRATION)), tensors(frames.report)
    with tempfile.TemporaryDirectory() as folder:
        model = exported(Path(folder))
    ranges = quantize.ranges(model, calibration, 1, lambda _text: None)
    corrections = calibration[:: len(calibration) // _CORRECTION][:_CORRECTION]
    variants = {
        "fp16": ("fp16", Calibrated(model, ranges)),
        "int8": ("int8", Calibrated(model, ranges, corrections)),
        "int8, biases as they were": ("int8", Calibrated(model, ranges)),
    }
    rows = []
    for name, (precision, source) in variants.items():
        made, _ = lower.write(source, precision, lambda _text: None)
        rows += judged(name, made, model, report)
    return tell("tensorrt", rows)


if __name__ == "__main__":
    main()
