"""TensorRT takes a graph with processing in it: parsed and built for any batch by the RTX wheels, which need no GPU."""

from __future__ import annotations

import drawn
import pytest

from compiler.ingraph.suppress import Suppression
from compiler.ingraph.wrap import Surroundings, surround
from skerry.manifest import Detection, InGraph, Preprocess

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx_libs", reason="the extra tensorrt-rtx is not installed")
trt = pytest.importorskip("tensorrt_rtx_bindings")

SIZE = (33, 47)


class Log(trt.ILogger):
    """Keeps errors; whatever else TensorRT has to say is not for a test."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, text):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(text)


def built(model):
    """The size of the engine for batches of 1 to 16; None and why if there is none."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    entry = network.get_input(0)
    profile.set_shape(entry.name, *((batch, *tuple(entry.shape)[1:]) for batch in (1, 4, 16)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return (None, log.errors) if engine is None else (engine.nbytes, [])


@pytest.mark.parametrize(
    "spec",
    [
        Preprocess(resize="letterbox"),
        Preprocess(resize="letterbox", color="gray", antialias=False),
        Preprocess(resize="crop", resize_to=40, color="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        Preprocess(resize="stretch", interpolation="nearest", layout="nhwc"),
    ],
    ids=["letterbox", "gray", "crop, bgr", "nearest, nhwc"],
)
def test_preprocessing_and_labels(spec):
    described, net = drawn.means(spec, (24, 40))
    around = Surroundings(InGraph(frame=SIZE, answers=True), suppression=Suppression(fixed=True))
    size, why = built(surround(net, described, around))
    assert size, why


@pytest.mark.parametrize(
    ("units", "box_format", "activation"), [("fraction", "xyxy", "softmax"), ("pixel", "cxcywh", "sigmoid")]
)
def test_decoding_and_suppression_by_fixed_shapes(units, box_format, activation):
    post = Detection(
        boxes="boxes", scores="scores", box_units=units, box_format=box_format, activation=activation, background=0
    )
    described, net = drawn.spelled(200, 3, post)
    fixed = Surroundings(InGraph(frame=SIZE, answers=True), suppression=Suppression(fixed=True))
    size, why = built(surround(net, described, fixed))
    assert size, why


def test_the_operator_has_no_kernel_there_which_is_why_there_is_another_form():
    described, net = drawn.spelled(200, 3, Detection(boxes="boxes", scores="scores"))
    size, why = built(surround(net, described, Surroundings(InGraph(answers=True))))
    assert size is None
    assert "nonmaxsuppression" in " ".join(why)
