"""Processing in the graph around each variant of a net, held to the runtime's own around that very variant."""

from __future__ import annotations

from dataclasses import dataclass

import drawn
import msgspec
import nets
import numpy as np
import onnx
import pytest
import rtx
from safetensors.numpy import save_file

from compiler.evaluation.compare import Reference, literally
from compiler.ingraph.difference import Difference
from compiler.ingraph.release import around, compare_in_graph, write
from compiler.ingraph.wrap import surround
from compiler.quantization import calibrate, quantize
from compiler.quantization.correct import correct_biases
from compiler.targets.target import Build, VariantPlan
from compiler.tensorrt import lower
from compiler.tensorrt.recipe import BuildRecipe, batches
from skerry.disk import Disk
from skerry.errors import CompileError
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.manifest import Accelerator, Detection, InGraph, Limits, Preprocess, Requires

pytestmark = pytest.mark.slow

CAMERA, SIDE, CELLS, CLASSES = (37, 53), 32, 16 * 16, 3
GRAPH = InGraph(frame=CAMERA, answers=True)


def described():
    post = Detection(
        boxes="boxes", scores="scores", box_format="cxcywh", activation="sigmoid", min_score=0.4, max_boxes=40
    )
    preprocess = Preprocess(resize="letterbox", mean=(0.4, 0.5, 0.6), std=(0.3,))
    shapes = {"boxes": [1, CELLS, 4], "scores": [1, CELLS, CLASSES]}
    return drawn.interface(shapes, preprocess, post, size=(SIDE, SIDE), labels=["a", "b", "c"])


def detector():
    """Convolutions of 16 channels and more, one depthwise: what TensorRT's int8 takes, and what it leaves."""
    net = nets.Net(1, 3, SIDE, SIDE)
    value = net.node("Relu", net.conv("image", 3, 16, 3, name="one"))
    value = net.node("Relu", net.conv(value, 16, 16, 3, name="each", group=16))
    value = net.node("Relu", net.conv(value, 16, 32, 3, name="two", stride=2))
    value = net.node("Relu", net.conv(value, 32, 32, 3, name="three"))
    for name, width in (("boxes", 4), ("scores", CLASSES)):
        head = net.conv(value, 32, width, 1, name=f"{name}.head")
        rows = net.node("Reshape", net.node("Transpose", head, perm=[0, 2, 3, 1]), net.constant([0, CELLS, width]))
        net.node("Sigmoid" if name == "boxes" else "Identity", rows, name=name)
    built = drawn.model(described(), net.nodes, net.tensors)
    return onnx.shape_inference.infer_shapes(built)


def frames(count):
    """Squares of a colour on noise."""
    random, made = np.random.default_rng(2), []
    for _ in range(count):
        frame = random.integers(0, 90, (*CAMERA, 3)).astype(np.uint8)
        for _ in range(4):
            (top, left), colour = random.integers(0, 30, 2), random.integers(0, 256, 3)
            frame[top : top + 12, left : left + 12] = colour
        made.append(frame)
    return made


def tensors(pictures):
    preprocess, made = Preprocessor(described()), []
    for picture in pictures:
        made.append(np.zeros((1, 3, SIDE, SIDE), np.float32))
        preprocess(picture, made[-1])
    return made


@dataclass(frozen=True)
class Made:
    """A variant's file as it ships without processing, and how it is run here."""

    path: object
    backend: str
    precision: str


VARIANTS = {
    "fp32": ("onnxrt", "fp32"),
    "int8": ("onnxrt", "int8"),
    "tensorrt-fp16": ("tensorrt", "fp16"),
    "tensorrt-int8": ("tensorrt", "int8"),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    onnx.save(detector(), folder / "net.onnx")
    quantize.prepare(folder / "net.onnx", folder / "prepared.onnx")
    prepared, inputs = onnx.load(folder / "prepared.onnx"), tensors(frames(12))
    ranges = calibrate.ranges(prepared, inputs, calibrate.DEFAULT, 1, rtx.said)

    def make(name):
        backend, precision = VARIANTS[name]
        if precision == "fp32":
            model = prepared
        elif backend == "onnxrt":
            model = quantize.laid_out(prepared, ranges, layout="u8s8")
            correct_biases(model, prepared, inputs, 1, rtx.said)
        else:
            model, _ = lower.write(lower.Calibrated(prepared, ranges, inputs), precision, rtx.said)
        onnx.save(model, folder / f"{name}.onnx")
        return Made(folder / f"{name}.onnx", backend, precision)

    return make


def whole(made, folder):
    """The variant's file with its processing, as a compilation writes it."""
    surroundings = around(GRAPH, described(), Limits(), made.backend)
    write(made.path, folder / "whole.onnx", described(), surroundings, Disk())
    return folder / "whole.onnx"


def runner(made, path):
    model = onnx.load(path)
    return drawn.session(model) if made.backend == "onnxrt" else literally(model)


@every_variant
def test_a_batch_of_any_size_gives_the_boxes_that_the_runtime_gives(variant, name, tmp_path):
    made, interface, pictures = variant(name), described(), frames(16)
    plain, together = runner(made, made.path), runner(made, whole(made, tmp_path))
    decode, read, found = make_decoder(interface), make_reader(interface, GRAPH), Difference()
    preprocess, prepare = Preprocessor(interface), make_preprocessor(interface, GRAPH)
    tensor, buffer = np.zeros((1, 3, SIDE, SIDE), np.float32), np.zeros((1, *CAMERA, 3), np.uint8)

    for batch in (1, 2, 5, 16):
        outputs = together(np.stack(pictures[:batch]))
        for index, picture in enumerate(pictures[:batch]):
            geometry = preprocess(picture, tensor)
            prepare(picture, buffer)
            one = {key: value[index : index + 1] for key, value in outputs.items()}
            found.input.add(tensor, one["image"])
            found.add(decode(plain(tensor), geometry), read(one, geometry), CAMERA, interface.postprocess)

    assert found.answers > 2 * found.frames
    assert (found.alone, found.frames) == (0, 24)
    assert found.box_px < 0.01
    assert found.input.db() > 60


def reference(folder, pictures):
    """What fp32 made of some frames, as the child writes it."""
    run, stored = drawn.session(detector()), {}
    for index, tensor in enumerate(tensors(pictures)):
        stored[f"input/{index}"] = tensor
        stored.update({f"output/{key}/{index}": value for key, value in run(tensor).items()})
    save_file(stored, folder / "reference.safetensors")
    return Reference(folder / "reference.safetensors", pictures, described(), 0.1)


@every_variant
def test_the_compilers_hop_holds_it_and_sees_what_was_drawn_wrong(variant, name, tmp_path):
    made, against = variant(name), reference(tmp_path, frames(6))
    here = made.backend == "onnxrt"
    hop = compare_in_graph("it", against, made.path, whole(made, tmp_path), GRAPH, Limits(), "onnxrt" if here else None)
    assert (hop.failed, hop.frames, hop.same) == (None, 6, hop.decided)
    assert hop.decided > 12

    loose = msgspec.structs.replace(described().postprocess, iou_threshold=0.95)
    wrong, form = (
        msgspec.structs.replace(described(), postprocess=loose),
        around(GRAPH, described(), Limits(), made.backend),
    )
    onnx.save(surround(onnx.load(made.path), wrong, form), tmp_path / "wrong.onnx")
    hop = compare_in_graph(
        "it", against, made.path, tmp_path / "wrong.onnx", GRAPH, Limits(), "onnxrt" if here else None
    )
    assert "have no counterpart" in hop.failed


def test_half_precision_is_rounded_where_it_stands(variant):
    """What ONNX Runtime's CPU would compute in single precision, were it left to: the hop must not look at that."""
    made = variant("tensorrt-fp16")
    tensor, by_kernels = tensors(frames(1))[0], drawn.session(onnx.load(made.path))
    assert not np.array_equal(by_kernels(tensor)["scores"], literally(onnx.load(made.path))(tensor)["scores"])


@pytest.mark.parametrize("name", ["tensorrt-fp16", "tensorrt-int8"])
def test_tensorrt_builds_it_for_batches_of_one_to_sixteen_without_a_plugin(variant, name, tmp_path):
    rtx.module()
    made = variant(name)
    model, layout = onnx.load(whole(made, tmp_path)), {"layout": "explicit"} if made.precision == "int8" else {}
    plan = VariantPlan(id=name, backend="tensorrt-rtx", precision=made.precision, source="a test", **layout)
    requires = Requires(accelerators=[Accelerator(sm=sm, at_least="1", below="2") for sm in rtx.SMS])

    built = lower.lower(model, tmp_path, plan, requires, rtx.said, Disk(), batch=(1, 16))

    assert {node.domain for node in model.graph.node} == {""}
    assert built is not None
    assert built.bytes > 10_000


def test_without_a_profile_there_is_no_engine(variant, tmp_path):
    rtx.module()
    path = whole(variant("tensorrt-int8"), tmp_path)
    assert [p.most[0] for p in batches(onnx.load(path), 1, 16)] == [16]
    with pytest.raises(CompileError, match="profile"):
        rtx.build(onnx.load(path), tmp_path, recipe=BuildRecipe(build=Build()))
