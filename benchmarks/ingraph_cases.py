"""The nets and frames on which processing in the graph is measured.

Two published face detectors (corners as fractions, a background), a detector of blood cells that is trained here
(centre and size in pixels, three classes), ImageNet's MobileNetV2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import version_converter
from PIL import Image

from benchmarks.results import OUT
from skerry.config import read_toml
from skerry.execution.frames import open_video, pixels
from skerry.execution.processing import Frame
from skerry.manifest import FORMAT, Classification, Detection, Interface, Preprocess, Tensor

FACES = Path("../shared/data/face")

Boxes = list[tuple[np.ndarray, np.ndarray]]  # per frame: corners [N, 4] as fractions, labels [N]


@dataclass(frozen=True)
class Case:
    """A net, frames of one size, and the true boxes if people drew some."""

    name: str
    interface: Interface
    model: onnx.ModelProto
    frames: Sequence[Frame]
    truth: Boxes | None = None

    @property
    def detects(self) -> bool:
        return isinstance(self.interface.postprocess, Detection)


def face_detector(name: str, pre: Preprocess, frames: Sequence[Frame]) -> Case:
    """A published file, brought to a newer opset and any batch."""
    model = onnx.load(FACES / f"{name}.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(entries)
    model = version_converter.convert_version(model, 20)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    described = Interface(
        format=FORMAT,
        name=name.lower(),
        version=1,
        task="detection",
        inputs=[Tensor("input", "float32", [1, 3, 240, 320])],
        outputs=[Tensor("scores", "float32", [1, 4420, 2]), Tensor("boxes", "float32", [1, 4420, 4])],
        preprocess=pre,
        postprocess=Detection(boxes="boxes", scores="scores", background=0, min_score=0.05, iou_threshold=0.3),
        labels=["background", "face"],
    )
    return Case(name, described, model, frames)


def cell_detector() -> Case:
    """Trained here; judged by images that it was not trained on."""
    from benchmarks import cells  # noqa: PLC0415 - torch, for this one case

    OUT.mkdir(parents=True, exist_ok=True)
    net, described, data = cells.trained(OUT / "cells.pth"), cells.interface(), list(cells.labelled("test"))
    frames = [frame for frame, _, _ in data]
    size = np.array([frames[0].shape[1], frames[0].shape[0]] * 2, np.float32)
    truth = [(corners / size, np.array([cells.LABELS[c] for c in classes])) for _, corners, classes in data]
    return Case("cells", described, exported(net, described), frames, truth)


def classifier() -> Case:
    """ImageNet's MobileNetV2 on frames of a street."""
    from compiler.child.userload import load_callable  # noqa: PLC0415 - torch, for this one case

    folder = Path("models/mobilenetv2")
    values = read_toml(folder / "recipe.toml")
    pre = {
        **values["preprocess"],
        "mean": tuple(values["preprocess"]["mean"]),
        "std": tuple(values["preprocess"]["std"]),
    }
    described = Interface(
        format=FORMAT,
        name="mobilenetv2",
        version=1,
        task="classification",
        inputs=[Tensor("image", "float32", values["input"]["shape"])],
        outputs=[Tensor("scores", "float32", [1, 1000])],
        preprocess=Preprocess(**pre),
        postprocess=Classification(scores="scores"),
        labels=(folder / "labels.txt").read_text().splitlines(),
    )
    import torch  # noqa: PLC0415 - as above

    net = load_callable(folder, values["model"]["build"])()
    net.load_state_dict(torch.load("assets/weights/mobilenet_v2-b0353104.pth", weights_only=True))
    return Case("mobilenetv2", described, exported(net.eval(), described), film("assets/video/bikes.mp4", 24))


def exported(net: object, described: Interface) -> onnx.ModelProto:
    """A torch module as ONNX, for any batch."""
    import torch  # noqa: PLC0415 - as above

    example, names = torch.zeros(described.inputs[0].shape), [t.name for t in described.outputs]
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: batch},),
        input_names=[described.inputs[0].name],
        output_names=names,
        verbose=False,
    )
    return program.model_proto


def film(path: str, count: int) -> list[Frame]:
    """Frames spread over a video."""
    with open_video(Path(path)) as video:
        return [pixels(frame) for frame in islice(video.frames(), 0, count * 4, 4)]


def portraits(count: int, height: int, width: int) -> list[Frame]:
    """Pictures of one odd size around a face."""
    random, image = np.random.default_rng(3), Image.open("assets/photos/astronaut.png").convert("RGB")
    places = [(int(random.integers(20, 200)), int(random.integers(0, 90))) for _ in range(count)]
    return [np.asarray(image.crop((x, y, x + width, y + height))) for x, y in places]


def small_faces() -> Case:
    """A face that talks, 144x176, stretched as the authors do."""
    return face_detector("version-RFB-320", _STRETCH, film("assets/video/carphone_pristine.mp4", 24))


def large_faces() -> Case:
    """Frames of an odd size, larger than the net's input."""
    letterbox = msgspec.structs.replace(_STRETCH, resize="letterbox", antialias=True)
    return face_detector("version-slim-320", letterbox, portraits(24, 417, 301))


_STRETCH = Preprocess(resize="stretch", antialias=False, scale=1.0, mean=(127.0,), std=(128.0,))
CASES = {"rfb": small_faces, "slim": large_faces, "cells": cell_detector, "mobilenetv2": classifier}
