"""Each hop is held to fp32 torch, and one that fails names the first layer that diverges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pictures import noise
from safetensors.numpy import save_file

from compiler.evaluation import compare
from compiler.evaluation.compare import MIN_EXPORT_SQNR_DB, Reference
from compiler.quantization import calibrate, quantize
from skerry.errors import FormatError
from skerry.execution.processing import Preprocessor
from skerry.manifest import FORMAT, Classification, Detection, Interface, Limits, Preprocess, Tensor

LIMITS = Limits()
SIZE = 8
WEIGHTS = ("stem.conv.weight", "body.0.conv.weight", "head.weight")

Tensors = Mapping[str, np.ndarray]


def net(changes: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None) -> onnx.ModelProto:
    """image [1, 3, 8, 8] to scores [1, 4], with the module paths that torch's exporter writes beside each node."""
    random = np.random.default_rng(1)
    shapes = ((6, 3, 3, 3), (6, 6, 3, 3), (6, 4))
    weights = {
        name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in zip(WEIGHTS, shapes, strict=True)
    }
    weights |= {name: change(weights[name]) for name, change in (changes or {}).items()}
    nodes = [
        node("Conv", ["image", "stem.conv.weight"], "conv2d", "stem", "stem.conv", pads=[1, 1, 1, 1]),
        node("Relu", ["conv2d"], "relu", "stem"),
        node("Conv", ["relu", "body.0.conv.weight"], "conv2d_1", "body", "body.0", "body.0.conv", pads=[1, 1, 1, 1]),
        node("Relu", ["conv2d_1"], "relu_1", "body", "body.0"),
        node("GlobalAveragePool", ["relu_1"], "mean"),
        node("Flatten", ["mean"], "flat"),
        node("MatMul", ["flat", "head.weight"], "scores", "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, inputs: list[str], output: str, *path: str, **attributes: object) -> onnx.NodeProto:
    made = helper.make_node(kind, inputs, [output], f"node_{output}", **attributes)
    scopes = str(["", *path, output])
    made.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
    return made


def interface(**changes: object) -> Interface:
    fields = {
        "format": FORMAT,
        "name": "net",
        "version": 1,
        "task": "classification",
        "inputs": [Tensor("image", "float32", [1, 3, SIZE, SIZE])],
        "outputs": [Tensor("scores", "float32", [1, 4])],
        "preprocess": Preprocess(resize="stretch", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
        "postprocess": Classification(scores="scores", activation="none"),
        "labels": list("abcd"),
    }
    return Interface(**{**fields, **changes})


def as_torch_would(model: onnx.ModelProto, folder: Path, view: Interface) -> Reference:
    """The reference file as the child writes it, but by a net that stands for torch's."""
    run, preprocess, tensors = compare.literally(model), Preprocessor(view), {}
    for index, frame in enumerate(noise(12, (20, 24), seed=2)):
        tensor = np.zeros((1, 3, SIZE, SIZE), np.float32)
        preprocess(frame, tensor)
        tensors[f"input/{index}"] = tensor
        tensors |= {f"output/{name}/{index}": value for name, value in run(tensor).items()}
    save_file(tensors, folder / "reference.safetensors")
    return Reference(folder / "reference.safetensors", noise(12, (20, 24), seed=2), view, LIMITS.min_margin)


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return as_torch_would(net(), tmp_path, interface())


def on_disk(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


# Pre-processing


def test_our_preprocessing_is_held_to_the_users_own(reference: Reference) -> None:
    hop = compare.compare_preprocessing(reference, LIMITS)

    assert hop.failed is None
    assert hop.sqnr_db == 200.0
    assert hop.frames == 12


@pytest.mark.parametrize(
    "wrong",
    [
        Preprocess(resize="stretch", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), color="bgr"),
        Preprocess(resize="stretch", mean=(0.5,), std=(0.2, 0.3, 0.25)),
        Preprocess(resize="stretch", mean=(0.4, 0.5, 0.6), std=(0.25,)),
        Preprocess(resize="crop", resize_to=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    ],
    ids=["colour-order", "mean", "deviation", "resize"],
)
def test_a_recipe_that_prepares_frames_otherwise_is_told_where_to_look(reference: Reference, wrong: Preprocess) -> None:
    bent = Reference(reference.path, noise(12, (20, 24), seed=2), interface(preprocess=wrong), LIMITS.min_margin)

    hop = compare.compare_preprocessing(bent, LIMITS)

    assert hop.failed is not None
    assert "pre-processing is not that of the code the net was trained with" in hop.failed
    assert "color, mean, std and resize" in hop.failed
    assert hop.sqnr_db < LIMITS.min_input_sqnr_db


# Models


def test_the_same_net_is_beyond_every_limit(reference: Reference, tmp_path: Path) -> None:
    run = compare.on_backend(on_disk(net(), tmp_path))

    hop = compare.compare_model("torch → ONNX fp32", reference, run, LIMITS, MIN_EXPORT_SQNR_DB)

    assert hop.failed is None
    assert hop.sqnr_db > 100
    assert hop.same == hop.decided
    assert hop.decided > 0


def test_a_net_that_is_a_little_off_fails_by_its_numbers(reference: Reference) -> None:
    louder = net({"head.weight": lambda w: w * 1.01})

    hop = compare.compare_model("hop", reference, compare.literally(louder), LIMITS, MIN_EXPORT_SQNR_DB)

    assert hop.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert hop.failed == "outputs differ from torch: 40.0 dB, at least 60 wanted"


def test_a_net_that_says_other_things_fails_by_its_answers(reference: Reference) -> None:
    shuffled = net({"head.weight": lambda w: w[:, [1, 0, 3, 2]]})

    hop = compare.compare_model("hop", reference, compare.literally(shuffled), LIMITS, -100.0)

    assert hop.same < hop.decided
    assert hop.failed == f"answers differ from torch: {hop.same} of {hop.decided} agree, 90% wanted"


def test_a_net_that_says_nothing_finite_fails(reference: Reference) -> None:
    broken = net({"head.weight": lambda w: w * np.float32(np.nan)})

    hop = compare.compare_model("hop", reference, compare.literally(broken), LIMITS, MIN_EXPORT_SQNR_DB)

    assert hop.sqnr_db == -200.0
    assert hop.failed is not None


# The first layer that diverges


def layers(folder: Path) -> Path:
    """Every inner value as torch has it, as the child's `layers` job writes them."""
    values = ["conv2d", "relu", "conv2d_1", "relu_1", "mean", "flat", "scores"]
    probe = compare.Probe(net(), values, threads=1)
    save_file({name: np.ascontiguousarray(value) for name, value in probe(tensor())}, folder / "layers.safetensors")
    return folder / "layers.safetensors"


def tensor() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize(
    ("weight", "module", "kind"),
    [
        ("stem.conv.weight", "stem.conv", "Conv"),
        ("body.0.conv.weight", "body.0.conv", "Conv"),
        ("head.weight", "head", "MatMul"),
    ],
)
def test_the_first_layer_that_left_torch_is_named_by_its_module_path(
    tmp_path: Path, weight: str, module: str, kind: str
) -> None:
    broken = net({weight: lambda w: w * 1.2})

    said = compare.diverging_from_torch(broken, layers(tmp_path), tensor())

    assert said.startswith(f"the first layer that diverges is {module} ({kind}, ")
    assert said.endswith("dB)")


def test_a_net_in_which_no_layer_is_past_the_limit_says_so(tmp_path: Path) -> None:
    said = compare.diverging_from_torch(net(), layers(tmp_path), tensor())

    assert said == "no single layer is past the limit, the error adds up over the depth"


def quantized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    source, out = on_disk(model, folder), folder / "int8.onnx"
    found = calibrate.ranges(model, [tensor()], "minmax", 1, lambda _text: None)
    quantize.lay_out(source, out, found, layout="u8s8")
    return onnx.load(out)


def test_a_layer_that_quantization_ruins_is_named(tmp_path: Path) -> None:
    def one_giant(w: np.ndarray) -> np.ndarray:
        w[:, 0] = 0.0
        w[:, 0, 0, 0] = 1e4  # looks at a channel that is never there, and widens the grid until nothing else is left
        return w

    def mute(w: np.ndarray) -> np.ndarray:
        w[0] = 0.0
        return w

    model = net({"stem.conv.weight": mute, "body.0.conv.weight": one_giant})

    said = compare.diverging_from_fp32(quantized(model, tmp_path), model, tensor(), LIMITS.min_sqnr_db)

    assert "the first layer that diverges is body.0" in said


def test_a_net_that_quantizes_well_blames_no_layer(tmp_path: Path) -> None:
    model = net()

    said = compare.diverging_from_fp32(quantized(model, tmp_path), model, tensor(), LIMITS.min_sqnr_db)

    assert "no single layer" in said


# Labels and outputs that do not fit


@pytest.mark.parametrize("labels", [["face"], ["nothing", "face", "hat"]])
def test_a_detector_whose_labels_do_not_fit_its_scores_is_refused_in_words(labels: list[str]) -> None:
    view = interface(
        task="detection",
        outputs=[Tensor("scores", "float32", [1, 10, 2]), Tensor("boxes", "float32", [1, 10, 4])],
        postprocess=Detection(boxes="boxes", scores="scores", background=0),
        labels=labels,
    )

    with pytest.raises(FormatError, match="label"):
        view.check()
