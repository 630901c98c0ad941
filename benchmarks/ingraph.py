"""Processing in the graph against the runtime's own, on real frames: boxes, average precision, batches, and time.

Four nets: two published face detectors (corners as fractions, a background), a detector of blood cells that is trained
here (centre and size in pixels, three classes), ImageNet's MobileNetV2. For each, both forms of suppression, every
frame alone, and sixteen of them in batches of 2 to 16, beside the runtime's own answers. Average precision is over
overlaps from 0.5 to 0.95, against people's boxes for the cells, against the runtime's own boxes for the faces. Time is
that of the whole path, one thread, in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter
from PIL import Image

from benchmarks.results import OUT, Row, ratio, tell
from compiler.ingraph.difference import Difference
from compiler.ingraph.suppress import Suppression
from compiler.ingraph.wrap import Surroundings, surround
from skerry.config import read_toml
from skerry.execution.frames import open_video, pixels
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.processing import Frame, Preprocessor, iou, make_decoder
from skerry.manifest import FORMAT, Classification, Detection, InGraph, Interface, Preprocess, Tensor
from skerry.wire import Answer

FACES = Path("../shared/data/face")
CAMERAS = {"640x480": (480, 640), "1280x720": (720, 1280), "1920x1080": (1080, 1920)}
FORMS = {"operator": Suppression(), "fixed shapes": Suppression(fixed=True)}
_BOX_PX, _AP_POINTS, _INPUT_DB = 1.0, 0.1, 40.0
_BATCHES, _IN_BATCHES, _TURNS = range(1, 17), 16, 40

Boxes = list[tuple[np.ndarray, np.ndarray]]  # per frame: corners [N, 4] as fractions, labels [N]


@dataclass(frozen=True)
class Case:
    """A net, frames of one size, and the true boxes if people drew some."""

    name: str
    interface: Interface
    model: onnx.ModelProto
    frames: Sequence[Frame]
    truth: Boxes | None = None


class Net:
    """A model on ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = ort.InferenceSession(model.SerializeToString(), session_options(1), providers=[PROVIDER])
        self._names = [output.name for output in self._session.get_outputs()]
        self._entry = self._session.get_inputs()[0].name

    def __call__(self, value: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(None, {self._entry: value}), strict=True))


# The cases


def face_detector(name: str, pre: Preprocess, frames: Sequence[Frame]) -> Case:
    """A published file, brought to a newer opset and any batch."""
    model = onnx.load(FACES / f"{name}.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(entries)
    model = version_converter.convert_version(model, 17)
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


# What is measured


def compared(case: Case, form: Suppression) -> list[Row]:
    """Every frame alone and the first in every batch, against the runtime's own processing."""
    size = case.frames[0].shape[:2]
    graph = InGraph(frame=size, answers=True)
    plain, drawn = Net(case.model), Net(surround(case.model, case.interface, Surroundings(graph, suppression=form)))
    wanted = [by_runtime(plain, case.interface, frame) for frame in case.frames]
    geometry = make_preprocessor(case.interface, graph)(case.frames[0], np.zeros((1, *size, 3), np.uint8))
    read, entry, found, first = make_reader(case.interface, graph), case.interface.inputs[0].name, Difference(), []
    for batch in _BATCHES:
        frames = case.frames if batch == 1 else case.frames[:_IN_BATCHES]
        for start in range(0, len(frames), batch):
            outputs = drawn(np.stack(frames[start : start + batch]))
            for index in range(len(outputs[entry])):
                one = {name: value[index : index + 1] for name, value in outputs.items()}
                tensor, answers = wanted[start + index]
                theirs = read(one, geometry)
                found.input.add(tensor, one[entry])
                found.add(answers, theirs, size, case.interface.postprocess)
                if batch == 1:
                    first.append(theirs)
    return difference_rows(case, found, [answers for _, answers in wanted], first)


def by_runtime(net: Net, described: Interface, frame: Frame) -> tuple[np.ndarray, list[Answer]]:
    """The input tensor and the answers."""
    tensor = np.zeros(described.inputs[0].shape, np.float32)
    geometry = Preprocessor(described)(frame, tensor)
    return tensor, make_decoder(described)(net(tensor), geometry)


def difference_rows(case: Case, found: Difference, ours: list[list[Answer]], theirs: list[list[Answer]]) -> list[Row]:
    """One line per figure; the bars are the issue's."""
    rows = [
        Row("input tensor, below its signal by", -found.input.db(), "dB", -_INPUT_DB),
        Row("answers without counterpart", found.alone if found.answers else None, "", 0, f"of {found.answers}"),
        Row("largest difference of scores", found.score, ""),
    ]
    if isinstance(case.interface.postprocess, Detection):
        truth = case.truth or [as_truth(answers) for answers in ours]
        before, after = average_precision(ours, truth), average_precision(theirs, truth)
        note = f"{before:.2f} and {after:.2f}, {'people' if case.truth else 'the runtime'} drew the boxes"
        rows += [
            Row("largest distance of boxes", found.box_px, "px", _BOX_PX),
            Row("average precision, apart by", abs(before - after), "points", _AP_POINTS, note),
        ]
    return rows


def as_truth(answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """The surer boxes of a frame as if they were true."""
    sure = [a for a in answers if a.score >= 0.5]
    return np.array([a.box for a in sure], np.float32).reshape(-1, 4), np.array([a.label for a in sure])


def average_precision(found: Sequence[Sequence[Answer]], truth: Boxes) -> float:
    """Mean over classes and over overlaps 0.5, 0.55 … 0.95, in percent: COCO's AP, all points of the curve."""
    labels = sorted({str(label) for _, there in truth for label in there})
    overlaps = np.arange(0.5, 0.96, 0.05)
    return float(np.mean([_precision(found, truth, label, overlap) for label in labels for overlap in overlaps])) * 100


def _precision(found: Sequence[Sequence[Answer]], truth: Boxes, label: str, overlap: float) -> float:
    boxes = [corners[there == label] for corners, there in truth]
    free = [np.ones(len(b), bool) for b in boxes]
    claims = sorted(((a.score, i, a.box) for i, f in enumerate(found) for a in f if a.label == label), reverse=True)
    hits = []
    for _, image, box in claims:
        shares = iou(np.array(box, np.float32), boxes[image]) * free[image] if len(boxes[image]) else np.zeros(1)
        hits.append(shares.max() >= overlap)
        if hits[-1]:
            free[image][shares.argmax()] = False
    right = np.cumsum(hits)
    if not len(right):
        return 0.0
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    return float(precision[np.array(hits)].sum() / sum(len(b) for b in boxes))


def timed(case: Case, camera: tuple[int, int], form: Suppression) -> tuple[float, float, float]:
    """Median of the paired ratios, graph to runtime; and each one's median in milliseconds."""
    graph = InGraph(frame=camera, answers=True)
    plain, drawn = Net(case.model), Net(surround(case.model, case.interface, Surroundings(graph, suppression=form)))
    picture = Image.fromarray(case.frames[0]).resize((camera[1], camera[0]))
    frame, decode, read = np.asarray(picture), make_decoder(case.interface), make_reader(case.interface, graph)
    preprocess, prepare = Preprocessor(case.interface), make_preprocessor(case.interface, graph)
    tensor, buffer = np.zeros(case.interface.inputs[0].shape, np.float32), np.zeros((1, *camera, 3), np.uint8)

    def usual() -> object:
        geometry = preprocess(frame, tensor)
        return decode(plain(tensor), geometry)

    def whole() -> object:
        geometry = prepare(frame, buffer)
        return read(drawn(buffer), geometry)

    turns = [(seconds(whole), seconds(usual)) for _ in range(_TURNS)][5:]
    these, those = zip(*turns, strict=True)
    return ratio(these, those), statistics.median(these) * 1e3, statistics.median(those) * 1e3


def seconds(function: Callable[[], object]) -> float:
    """One call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def small_faces() -> Case:
    """A face that talks, 144x176, stretched as the authors do."""
    return face_detector("version-RFB-320", _STRETCH, film("assets/video/carphone_pristine.mp4", 24))


def large_faces() -> Case:
    """Frames of an odd size, larger than the net's input."""
    letterbox = msgspec.structs.replace(_STRETCH, resize="letterbox", antialias=True)
    return face_detector("version-slim-320", letterbox, portraits(24, 417, 301))


_STRETCH = Preprocess(resize="stretch", antialias=False, scale=1.0, mean=(127.0,), std=(128.0,))
CASES = {"rfb": small_faces, "slim": large_faces, "cells": cell_detector, "mobilenetv2": classifier}


def main(names: Sequence[str] = ()) -> bool:
    """Measures the named cases, or all, and tells; whether the bars were met."""
    if not FACES.is_dir():
        print(f"{FACES} is not there: the nets of this measurement do not come with the repository", file=sys.stderr)
        return False
    rows = []
    for make in [CASES[name] for name in names or CASES]:
        case = make()
        detects = isinstance(case.interface.postprocess, Detection)
        for name, form in FORMS.items() if detects else [("labels", Suppression())]:
            rows += [named(f"{case.name}, {name}: {row.what}", row) for row in compared(case, form)]
        usual = msgspec.structs.replace(case.interface.postprocess, min_score=0.5 if detects else 0.0)
        at_work = Case(case.name, msgspec.structs.replace(case.interface, postprocess=usual), case.model, case.frames)
        for camera, size in CAMERAS.items():
            times, graph_ms, runtime_ms = timed(at_work, size, Suppression())
            note = f"{graph_ms:.1f} ms in the graph, {runtime_ms:.1f} ms by the runtime"
            rows.append(Row(f"{case.name}, {camera}: time", times, "x", None, note))
        if detects:
            times, graph_ms, runtime_ms = timed(at_work, CAMERAS["640x480"], Suppression(fixed=True))
            note = f"{graph_ms:.1f} ms in the graph, {runtime_ms:.1f} ms by the runtime"
            rows.append(Row(f"{case.name}, 640x480, fixed shapes: time", times, "x", None, note))
    return tell("ingraph", rows)


def named(what: str, row: Row) -> Row:
    """The row under another name."""
    return Row(what, row.value, row.unit, row.bar, row.note)


if __name__ == "__main__":
    raise SystemExit(0 if main(sys.argv[1:]) else 1)
