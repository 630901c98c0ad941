"""Two published face detectors with their processing in the graph find the faces that they find without."""

from __future__ import annotations

import drawn
import needs
import numpy as np
import onnx
import pytest
from onnx import version_converter
from PIL import Image

from compiler.ingraph.difference import Difference
from compiler.ingraph.suppress import Suppression
from compiler.ingraph.wrap import Surroundings, surround
from skerry.execution.frames import open_video, pixels
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.manifest import FORMAT, Detection, InGraph, Interface, Preprocess, Tensor

pytestmark = pytest.mark.slow

FORMS = {"operator": Suppression(), "fixed": Suppression(fixed=True)}
NORMAL = {"scale": 1.0, "mean": (127.0,), "std": (128.0,)}


def published(path):
    """The authors' file of opset 9, its weights listed as inputs, made one of opset 17 for any batch."""
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    entries = [entry for entry in model.graph.input if entry.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(entries)
    model = version_converter.convert_version(model, 17)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def described(preprocess):
    return Interface(
        format=FORMAT,
        name="faces",
        version=1,
        task="detection",
        inputs=[Tensor("input", "float32", [1, 3, 240, 320])],
        outputs=[Tensor("scores", "float32", [1, 4420, 2]), Tensor("boxes", "float32", [1, 4420, 4])],
        preprocess=preprocess,
        postprocess=Detection(boxes="boxes", scores="scores", background=0, min_score=0.3, iou_threshold=0.3),
        labels=["background", "face"],
    )


def film(count):
    """A face that talks, 144x176."""
    with open_video(needs.asset("video/carphone_pristine.mp4")) as video:
        return [pixels(frame) for number, frame in enumerate(video.frames()) if number % 5 == 0][:count]


def portraits(count, height=417, width=301):
    """An odd size, larger than the net's input, some with half a face."""
    image, random = Image.open(needs.asset("photos/astronaut.png")).convert("RGB"), np.random.default_rng(3)
    places = [(int(random.integers(20, 200)), int(random.integers(0, 90))) for _ in range(count)]
    return [np.asarray(image.crop((x, y, x + width, y + height))) for x, y in places]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("net", "frames", "spec"),
    [
        ("RFB", film, Preprocess(resize="stretch", antialias=False, **NORMAL)),
        ("RFB", portraits, Preprocess(resize="crop", resize_to=320, **NORMAL)),
        ("slim", portraits, Preprocess(resize="letterbox", **NORMAL)),
        ("slim", film, Preprocess(resize="letterbox", interpolation="nearest", **NORMAL)),
    ],
    ids=["film, stretched", "portraits, cropped", "portraits, letterboxed", "film, nearest"],
)
def test_the_same_faces_within_a_pixel_in_any_batch(data, net, frames, spec, form, record_testsuite_property):
    model, face = published(data / "face" / f"version-{net}-320.onnx"), described(spec)
    pictures = frames(16)
    size = pictures[0].shape[:2]
    graph = InGraph(frame=size, answers=True)
    plain, whole = drawn.session(model), drawn.session(surround(model, face, Surroundings(graph, suppression=form)))
    wanted = [by_runtime(plain, face, picture) for picture in pictures]
    geometry = make_preprocessor(face, graph)(pictures[0], np.zeros((1, *size, 3), np.uint8))
    found, read = Difference(), make_reader(face, graph)

    for batch in (1, 2, 5, 16):
        for start in range(0, len(pictures), batch):
            outputs = whole(np.stack(pictures[start : start + batch]))
            for index in range(len(outputs["answer_count"])):
                one = {name: value[index : index + 1] for name, value in outputs.items()}
                tensor, answers = wanted[start + index]
                found.input.add(tensor, one["input"])
                found.add(answers, read(one, geometry), size, face.postprocess)

    told = f"{found.answers} boxes, apart {found.box_px:.4f} px, scores {found.score:.5f}, {found.input.db():.0f} dB"
    record_testsuite_property(f"in graph {net} {frames.__name__} {spec.resize}", told)
    assert found.answers >= 2 * found.frames / 4, told
    assert (found.alone, found.frames) == (0, 64), told
    assert found.box_px <= 1.0, told
    assert found.input.db() >= 60, told


def by_runtime(run, face, picture):
    tensor = np.zeros(face.inputs[0].shape, np.float32)
    geometry = Preprocessor(face)(picture, tensor)
    return tensor, make_decoder(face)(run(tensor), geometry)


def test_boxes_shifted_by_two_pixels_are_told_apart():
    """The measure itself: it fails when it should."""
    face = described(Preprocess(resize="stretch", **NORMAL))
    boxes = np.zeros((1, 4420, 4), np.float32)
    boxes[0, 7] = [0.2, 0.2, 0.5, 0.6]
    scores = np.zeros((1, 4420, 2), np.float32)
    scores[0, 7, 1] = 0.9
    geometry = make_preprocessor(face, InGraph(frame=(100, 200)))(
        np.zeros((100, 200, 3), np.uint8), np.zeros((1, 100, 200, 3), np.uint8)
    )
    right = make_decoder(face)({"scores": scores, "boxes": boxes}, geometry)
    moved = make_decoder(face)({"scores": scores, "boxes": boxes + np.float32(0.01)}, geometry)
    found = Difference()

    for ours, theirs in ((right, moved), (right, []), ([], right)):
        found.add(ours, theirs, (100, 200), face.postprocess)

    assert found.box_px == pytest.approx(2.0, abs=1e-3)
    assert (found.answers, found.alone) == (2, 2)
