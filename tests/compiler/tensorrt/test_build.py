"""Engines: built ahead of time with TensorRT for RTX, refused with node, operator and reason, and survived."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import onnx
import pytest
import rtx
import typed_nets as nets
from nets import Net
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from compiler.quantization import calibrate
from compiler.targets.target import Build, VariantPlan
from compiler.tensorrt import api, build, layout, preflight
from compiler.tensorrt.recipe import BuildRecipe, Profile, batches, engine_key
from skerry.errors import CompileError
from skerry.manifest import Requires


def test_a_build_in_its_own_process_tells_how_far_it_is_and_writes_the_engine(tmp_path):
    rtx.module()
    onnx.save(nets.resnet(), tmp_path / "model.onnx")
    heard = []

    made = build.build(rtx.request(tmp_path, sms=["8.6"]), heard.append)

    assert made.bytes == (tmp_path / "model.engine").stat().st_size > 10_000
    assert made.version == api.version("tensorrt-rtx")
    assert made.layers > 10
    assert any("building the engine" in text for text in heard)


def test_the_same_model_gives_the_same_engine(tmp_path):
    engines = []
    for _ in range(2):
        rtx.build(nets.resnet(), tmp_path)
        engines.append((tmp_path / "model.engine").read_bytes())

    assert engines[0] == engines[1]


class Frames(CalibrationDataReader):
    """What ONNX Runtime's quantizer calibrates with."""

    def __init__(self):
        self.left = [{"image": frame} for frame in nets.frames(2)]

    def get_next(self):
        return self.left.pop() if self.left else None


def orts_default(tmp_path):
    """A net as ONNX Runtime quantizes it when nobody says otherwise: asymmetric, biases too."""
    onnx.save(nets.resnet(), tmp_path / "fp32.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(tmp_path / "fp32.onnx", tmp_path / "ort.onnx", Frames(), quant_format=QuantFormat.QDQ)
    return onnx.load(tmp_path / "ort.onnx")


def test_what_onnx_runtime_writes_by_default_is_refused_and_the_node_is_named(tmp_path):
    with pytest.raises(CompileError, match=r"refuses the model: .*DequantizeLinear.*Int32"):
        rtx.build(orts_default(tmp_path), tmp_path)


def test_and_it_is_refused_before_anything_is_built(tmp_path):
    plan = VariantPlan(id="int8", backend="tensorrt-rtx", precision="int8", source="a test", layout="explicit")

    with pytest.raises(
        CompileError, match=r"dequantizes int32: a quantized bias, which TensorRT refuses; .* and \d+ more"
    ):
        preflight.check_model(orts_default(tmp_path), plan, Requires())


def test_an_operator_that_the_parser_does_not_know_is_named_with_its_reason(tmp_path):
    net = Net(1, 3, 64, 64)
    net.node("Relu", "image", name="before")
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["before"], ["y", "scale", "zero"], "the_culprit"))
    net.node("Cast", "y", name="out", to=TensorProto.FLOAT)

    with pytest.raises(CompileError, match=r"the_culprit \(DynamicQuantizeLinear\): "):
        rtx.build(net.model("out"), tmp_path)


def test_turing_has_no_fp32_matrix_products(tmp_path):
    """Why its targets have no fp32 variant, and why the preflight knows."""
    with pytest.raises(CompileError, match="no engine came out of"):
        rtx.build(nets.transformer(), tmp_path, sms=["7.5"])


def test_a_card_that_it_cannot_build_for_is_refused_with_the_list(tmp_path):
    with pytest.raises(CompileError, match=r"cannot build for SM 8\.7; it can for .*SM86"):
        rtx.build(nets.resnet(), tmp_path, sms=["8.7"])


def open_batch():
    model = nets.resnet()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def test_an_open_batch_needs_a_profile_and_builds_with_one(tmp_path):
    with pytest.raises(CompileError, match="profile"):
        rtx.build(open_batch(), tmp_path)

    profiles = batches(open_batch(), 1, 16)

    assert profiles == [Profile(input="image", least=[1, 3, 64, 64], usual=[1, 3, 64, 64], most=[16, 3, 64, 64])]
    assert rtx.build(open_batch(), tmp_path, recipe=BuildRecipe(build=Build(), profiles=profiles)).bytes
    assert batches(nets.resnet(), 1, 16) == []


def test_an_engine_is_inspected_only_where_it_can_run(tmp_path):
    """Here there is no GPU, so it must say so, and not go down with it."""
    rtx.module()
    onnx.save(nets.resnet(), tmp_path / "model.onnx")

    with pytest.raises(CompileError, match=r"does not load where it was built|took its process down"):
        build.build(rtx.request(tmp_path, inspect=str(tmp_path / "engine.json")), rtx.said)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os; os.abort()", "signal 6"),
        ("import sys; print('free(): invalid pointer'); sys.exit(3)", "exit code 3; it said: free.*invalid pointer"),
    ],
)
def test_a_process_that_dies_is_an_error_with_words(script, words, tmp_path):
    with pytest.raises(CompileError, match=rf"tensorrt-rtx took its process down \({words}"):
        build.build(rtx.request(tmp_path), rtx.said, command=[sys.executable, "-c", script])


def test_a_backend_that_is_not_installed_says_how_to_get_it(tmp_path):
    if api.version("tensorrt"):
        pytest.skip("classic TensorRT is installed here")
    with pytest.raises(CompileError, match=r"tensorrt does not load here .* this device's JetPack"):
        build.build(rtx.request(tmp_path, backend="tensorrt", sms=[]), rtx.said)


def test_what_must_build_here_is_asked_for_before_anything_else():
    rtx.module()

    assert api.require("tensorrt-rtx") == api.version("tensorrt-rtx")
    if api.version("tensorrt") is None:
        with pytest.raises(CompileError, match="builds the engine here and is not installed; it needs the TensorRT of"):
            api.require("tensorrt")


def test_the_calls_of_the_runner_and_the_inspector_exist_in_the_api():
    """No engine runs here: that the names are right is all that can be seen."""
    trt = rtx.module()
    used = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": [
            "create_execution_context",
            "create_engine_inspector",
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_dtype",
        ],
        "IExecutionContext": ["set_input_shape", "set_tensor_address", "execute_async_v3", "get_tensor_shape"],
        "EngineInspector": ["get_engine_information"],
        "LayerInformationFormat": ["JSON"],
        "TensorIOMode": ["INPUT"],
        "IBuilderConfig": ["create_timing_cache", "set_timing_cache", "get_timing_cache", "DLA_core", "set_flag"],
        "BuilderFlag": ["GPU_FALLBACK"],
        "DeviceType": ["DLA"],
        "ITimingCache": ["serialize"],
    }

    missing = [
        f"{kind}.{name}" for kind, names in used.items() for name in names if not hasattr(getattr(trt, kind), name)
    ]

    assert missing == []


RECIPE = BuildRecipe(build=Build())
WHERE = {
    "backend": "tensorrt",
    "version": "10.3.0.30",
    "sm": "8.7",
    "system": "l4t-36.4.3",
    "options": {"power": "25W"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "10.3.0.31"},
        {"sm": "8.6"},
        {"system": "l4t-36.4.4"},
        {"backend": "tensorrt-rtx"},
        {"options": {"power": "15W"}},
    ],
)
def test_whatever_ties_an_engine_to_its_place_is_in_its_key(changed):
    key = engine_key(RECIPE, "a" * 64, **WHERE)

    assert key == engine_key(RECIPE, "a" * 64, **WHERE)
    assert key != engine_key(RECIPE, "a" * 64, **{**WHERE, **changed})


def test_an_engines_key_holds_the_model_and_how_it_was_built():
    other = BuildRecipe(build=Build(workspace_mib=2048))
    keys = {engine_key(r, digest * 64, **WHERE) for r in (RECIPE, other) for digest in "ab"}

    assert len(keys) == 4


def test_what_is_folded_away_still_builds(tmp_path):
    """A net whose weights stand in Constant nodes, as foreign graphs have them."""
    model = nets.resnet()
    tensors = list(model.graph.initializer)
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    ranges = calibrate.ranges(model, nets.frames(2), calibrate.DEFAULT, 1, rtx.said)

    made = layout.lay_out(model, ranges)

    assert numpy_helper.to_array(made.graph.initializer[0]).dtype in (np.int8, np.float16)
    assert rtx.build(made, tmp_path).bytes
