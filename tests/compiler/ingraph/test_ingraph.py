"""Processing in the graph is the runtime's own: the same input tensor, the same boxes, whatever the batch."""

from __future__ import annotations

import drawn
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compiler.ingraph.suppress import Suppression
from compiler.ingraph.wrap import Surroundings, surround
from skerry.errors import BackendError, CompileError
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Geometry, Preprocessor, make_decoder
from skerry.manifest import Classification, Detection, InGraph, Preprocess

FORMS = {"operator": Suppression(), "fixed": Suppression(fixed=True)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

SIDES = st.integers(1, 90)
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def preprocessings(draw):
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    lengths = [1] if color == "gray" else [1, 3]
    values = st.sampled_from(lengths).flatmap(lambda n: st.lists(st.floats(0.25, 3), min_size=n, max_size=n))
    return Preprocess(
        color=color,
        resize=draw(st.sampled_from(["crop", "letterbox", "stretch"])),
        resize_to=draw(st.integers(1, 60)),
        interpolation=draw(st.sampled_from(["bilinear", "nearest"])),
        antialias=draw(st.booleans()),
        pad_value=draw(st.integers(0, 255)),
        scale=draw(st.sampled_from([1.0, 1 / 255])),
        mean=tuple(draw(values)),
        std=tuple(draw(values)),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
    )


def frames_of(size, count=1, seed=0):
    """Noise on a slope: edges, flat parts and ties."""
    slope = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] * 3
    noise = np.random.default_rng(seed).integers(0, 120, (count, *size, 3))
    return ((noise + slope) % 256).astype(np.uint8)


def by_runtime(described, frame):
    tensor = np.zeros(described.inputs[0].shape, described.inputs[0].dtype)
    Preprocessor(described)(frame, tensor)
    return tensor


# --- from the frame to the input -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    preprocessings(), SIZES, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(["float32", "uint8"])
)
def test_the_graphs_input_tensor_is_the_runtimes(preprocess, source, target, dtype):
    described, net = drawn.means(preprocess, target, dtype)
    built = surround(net, described, Surroundings(InGraph(frame=source)))
    frames = frames_of(source, 2)

    found = drawn.session(built)(frames)["image"]

    level = 1.0 if dtype == "uint8" else preprocess.scale / min(preprocess.std)
    for frame, tensor in zip(frames, found, strict=True):
        apart = np.abs(by_runtime(described, frame)[0].astype(float) - tensor) / level
        assert apart.max() <= 1.001  # a tie that rounds the other way
        assert (apart > 0.01).sum() <= 1 + apart.size // 1000


@pytest.mark.parametrize(("source", "target"), [((48, 64), (24, 32)), ((64, 48), (64, 48)), ((30, 50), (15, 20))])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_where_the_weights_are_exact_so_is_every_pixel(source, target, interpolation):
    described, net = drawn.means(Preprocess(resize="crop", resize_to=15, interpolation=interpolation), target)
    frames = frames_of(source)

    found = drawn.session(surround(net, described, Surroundings(InGraph(frame=source))))(frames)["image"]

    assert np.array_equal(found, by_runtime(described, frames[0]))


@pytest.mark.parametrize("batch", range(1, 17))
def test_a_batch_is_what_its_frames_are_one_by_one(batch):
    preprocess = Preprocess(resize="letterbox", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    described, net = drawn.means(preprocess, (24, 40))
    run = drawn.session(drawn.checked(surround(net, described, Surroundings(InGraph(frame=(33, 47), answers=True)))))
    frames = frames_of((33, 47), batch)

    together, alone = run(frames), [run(frame[None]) for frame in frames]

    for name, values in together.items():
        np.testing.assert_allclose(values, np.concatenate([one[name] for one in alone]), rtol=1e-6, atol=1e-6)


# --- from the outputs to the answers -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(["softmax", "sigmoid", "none"]),
    st.integers(1, 7),
    st.floats(0, 0.6),
    st.integers(0, 2**16),
)
def test_labels_are_the_decoders(classes, activation, top, min_score, seed):
    post = Classification(scores="scores", activation=activation, top=top, min_score=min_score)
    described = drawn.interface({"scores": [1, classes]}, size=(1, classes), preprocess=GRAY, postprocess=post)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    net = drawn.model(described, [helper.make_node("Squeeze", ["image", "axes"], ["scores"])], [axes])
    run = drawn.session(surround(net, described, Surroundings(InGraph(answers=True))))
    scores = np.random.default_rng(seed).integers(-4, 5, (3, 1, 1, classes)).astype(np.float32) / 2  # with ties

    outputs = run(scores)

    for index in range(len(scores)):
        one = {name: value[index : index + 1] for name, value in outputs.items()}
        assert_same(make_reader(described, InGraph(answers=True))(one, STILL), make_decoder(described)(one, STILL))


GRAY = Preprocess(resize="stretch", scale=1.0, color="gray")
STILL = Geometry(GRAY, (50, 40), (50, 40))


@st.composite
def detections(draw):
    classes = draw(st.integers(1, 4))
    return classes, Detection(
        boxes="boxes",
        scores="scores",
        box_format=draw(st.sampled_from(["xyxy", "cxcywh"])),
        box_units=draw(st.sampled_from(["fraction", "pixel"])),
        activation=draw(st.sampled_from(["softmax", "sigmoid", "none"])),
        background=draw(st.none() | st.integers(0, classes - 1)) if classes > 1 else None,
        min_score=draw(st.sampled_from([0.1, 0.3, 0.5])),
        iou_threshold=draw(st.sampled_from([0.0, 0.3, 0.5, 0.8])),
        max_boxes=draw(st.integers(1, 30)),
    )


def rows(count, classes, post, images, seed):
    """Boxes in clumps, some empty, and scores, with ties where no exp is between: [images, 1, count, 4 + classes]."""
    random = np.random.default_rng(seed)
    low = random.integers(0, 6, (images, count, 2)) / 8
    size = random.integers(0, 5, (images, count, 2)) / 8
    boxes = np.concatenate([low, low + size if post.box_format == "xyxy" else size], axis=-1)
    boxes = boxes * (40.0 if post.box_units == "pixel" else 1.0)
    if post.activation == "none":
        scores = random.integers(0, 11, (images, count, classes)) / 10
    else:  # exp is not one function everywhere: a tie behind it would be broken by the last bit
        scores = random.normal(0, 2, (images, count, classes))
    return np.concatenate([boxes, scores], axis=-1)[:, None].astype(np.float32)


def assert_same(found, wanted):
    assert [a.label for a in found] == [a.label for a in wanted]
    assert [a.score for a in found] == pytest.approx([a.score for a in wanted], abs=1e-6)
    for one, other in zip(found, wanted, strict=True):
        assert (one.box is None) == (other.box is None)
        assert one.box is None or one.box == pytest.approx(other.box, abs=1e-5)


@every_form
@settings(max_examples=40, deadline=None)
@given(detections(), st.integers(1, 40), st.sampled_from([0.0, 0.2]), st.integers(0, 2**16))
def test_boxes_are_the_decoders(form, spec, count, slack, seed):
    """Ties, empty boxes, a background, every unit; and read with the threshold as with a proof's slack."""
    classes, post = spec
    described, net = drawn.spelled(count, classes, post)
    graph = InGraph(answers=True)
    run = drawn.session(surround(net, described, Surroundings(graph, slack=slack, suppression=form)))
    geometry = Geometry(described.preprocess, (31, 57), described.input_size())

    outputs = run(rows(count, classes, post, 3, seed))

    for index in range(3):
        one = {name: value[index : index + 1] for name, value in outputs.items()}
        for given_slack in {0.0, slack}:
            wanted = make_decoder(described)(one, geometry, given_slack)
            assert_same(make_reader(described, graph)(one, geometry, given_slack), wanted)


@every_form
def test_with_the_frame_known_boxes_are_fractions_of_it(form):
    post = Detection(boxes="boxes", scores="scores", min_score=0.3, max_boxes=5)
    described, net = drawn.spelled(12, 2, post)
    described = msgspec.structs.replace(
        described, preprocess=Preprocess(resize="letterbox", color="gray", scale=1 / 255)
    )
    graph = InGraph(frame=(9, 30), answers=True)
    run = drawn.session(drawn.checked(surround(net, described, Surroundings(graph, suppression=form))))
    frame = frames_of((9, 30))

    outputs = run(frame)
    geometry = make_preprocessor(described, graph)(frame[0], np.zeros_like(frame))

    found = make_reader(described, graph)(outputs, geometry)
    assert found
    assert_same(found, make_decoder(described)(outputs, geometry))


def test_what_the_fixed_form_did_not_look_at_is_counted():
    """Twenty boxes, the surer ten in one place: five are looked at, one stays, and that there were more is said."""
    post = Detection(boxes="boxes", scores="scores", box_units="pixel", min_score=0.1, max_boxes=3)
    described, net = drawn.spelled(20, 1, post)
    corner = np.concatenate([np.zeros(10), np.arange(10) * 10.0])[:, None]
    table = np.concatenate([corner, corner, corner + 5, corner + 5, np.linspace(0.9, 0.2, 20)[:, None]], axis=1)
    graph, geometry = InGraph(answers=True), Geometry(GRAY, (31, 57), described.input_size())
    for candidates, missed, kept in ((5, 15, 1), (13, 7, 3), (20, 0, 3)):
        form = Suppression(fixed=True, candidates=candidates)
        run = drawn.session(surround(net, described, Surroundings(graph, slack=0.05, suppression=form)))

        outputs = run(table[None, None].astype(np.float32))

        assert (outputs["answer_missed"].tolist(), outputs["answer_count"].tolist()) == ([missed], [kept])
        if kept < 3:
            with pytest.raises(BackendError, match="left 15 scores over the threshold aside"):
                make_reader(described, graph)(outputs, geometry)
        else:  # the three best are there, whatever was left aside
            assert_same(make_reader(described, graph)(outputs, geometry), make_decoder(described)(outputs, geometry))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_graph_of_an_old_opset_is_refused():
    described, net = drawn.means(Preprocess(resize="stretch"), (8, 8))
    net.opset_import[0].version = 11
    with pytest.raises(CompileError, match="raise it to 13"):
        surround(net, described, Surroundings(InGraph(frame=(20, 20))))


def test_a_model_that_is_not_the_interfaces_is_refused():
    described, net = drawn.means(Preprocess(resize="stretch"), (8, 8))
    net.graph.output[0].name = "other"
    with pytest.raises(CompileError, match="has no scores; it has image, other"):
        surround(net, described, Surroundings(InGraph(frame=(20, 20))))


def test_a_net_that_has_a_tensor_of_our_name_is_refused():
    described, net = drawn.means(Preprocess(resize="stretch"), (8, 8))
    net.graph.node[0].output[0] = net.graph.node[1].input[0] = "frames"
    with pytest.raises(CompileError, match="a tensor named frames"):
        surround(net, described, Surroundings(InGraph(frame=(20, 20))))


def test_a_frame_of_another_size_is_refused():
    described, _ = drawn.means(Preprocess(resize="stretch"), (8, 8))
    preprocess = make_preprocessor(described, InGraph(frame=(20, 30)))
    with pytest.raises(BackendError, match="takes frames of 30x20, this one has 30x21"):
        preprocess(np.zeros((21, 30, 3), np.uint8), np.zeros((1, 20, 30, 3), np.uint8))
