"""What a target or a graph cannot have is refused before anything is built, and the refusal says what to do."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import rtx
import typed_nets as nets
from nets import Net
from onnx import TensorProto, helper

from compiler.targets import target
from compiler.targets.target import Fact, VariantPlan
from compiler.tensorrt import half, layout, preflight
from skerry.errors import CompileError, UsageError
from skerry.manifest import Accelerator, DeviceFacts, Requires

FACTS = DeviceFacts(arch="x86_64", cpu=[], backends=[])
WITH_TENSORRT = [name for name in target.names() if name.startswith(("jetson", "rtx"))]


def changed(name, *, plan=None, gpu=None, build=None):
    """A target with its variants, its GPU or its build bent."""
    found = target.load(name, FACTS)
    if plan:
        plan = {"layout": "explicit" if plan.get("precision") == "int8" else "float", **plan}
        bent = [msgspec.structs.replace(v, **plan) if v.backend != "onnxrt" else v for v in found.variant]
        found = msgspec.structs.replace(found, variant=bent)
    if gpu:
        facts = {key: Fact(value, "a test") for key, value in gpu.items()}
        found = msgspec.structs.replace(found, gpu=msgspec.structs.replace(found.gpu, **facts))
    if build:
        found = msgspec.structs.replace(found, build=msgspec.structs.replace(found.build, **build))
    return found


@pytest.mark.parametrize("name", WITH_TENSORRT)
def test_every_target_as_it_is_can_have_what_it_asks_for(name):
    found = target.load(name, FACTS)

    assert preflight.refusals(name, found) == []
    for system in found.system:
        assert preflight.refusals(name, target.load(f"{name}@{system.name}", FACTS)) == []


FP8, NVFP4, INT4, BF16 = ({"precision": kind} for kind in ("fp8", "nvfp4", "int4", "bf16"))
DLA = {"dla_core": 0}
FP16 = {"precision": "fp16"}
ORIN, NX, AGX, THOR = "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor"


@pytest.mark.parametrize(
    ("name", "bent", "tensorrt", "words"),
    [
        # a precision that the GPU does not have
        (ORIN, {"plan": FP8}, None, "asks for fp8, SM 8.7 has fp32, fp16, int8, int4"),
        (NX, {"plan": FP8}, None, "asks for fp8, SM 8.7 has"),
        (AGX, {"plan": FP8}, None, "neither FP8 nor FP4"),
        (ORIN, {"plan": NVFP4}, None, "asks for nvfp4"),
        (AGX, {"plan": NVFP4}, None, "asks for nvfp4"),
        ("rtx-sm86", {"plan": NVFP4}, None, "asks for nvfp4"),
        ("rtx-sm86", {"plan": FP8}, None, "asks for fp8"),
        ("rtx-sm75", {"plan": BF16}, None, "asks for bf16"),
        ("rtx-sm75", {"plan": {"precision": "fp32"}}, None, "refuses fp32 matrix products"),
        ("rtx-sm89", {"plan": NVFP4}, None, "asks for nvfp4"),
        # one that it has and this compiler does not write
        (THOR, {"plan": FP8}, None, "asks for fp8, this compiler writes fp32, fp16, int8; use int8 or fp16"),
        (THOR, {"plan": NVFP4}, None, "this compiler writes"),
        (ORIN, {"plan": INT4}, None, "this compiler writes"),
        ("rtx-sm120", {"plan": NVFP4}, None, "this compiler writes"),
        # a DLA where there is none, or none that takes this
        (ORIN, {"build": DLA}, None, "jetson-orin-nano has no DLA .*leave dla_core out"),
        (THOR, {"build": DLA}, None, "jetson-thor has no DLA"),
        ("rtx-sm86", {"build": DLA}, None, "rtx-sm86 has no DLA"),
        (NX, {"build": {"dla_core": 1}}, None, "dla_core = 1 is asked for, jetson-orin-nx has 1 DLA"),
        (AGX, {"build": {"dla_core": 2}}, None, "has 2 DLA"),
        (AGX + "@jp6.2", {"build": DLA}, None, "explicit Q/DQ, which a DLA takes from TensorRT 11.4.1 on, not 10.3.0"),
        (AGX + "@jp6.2", {"build": DLA, "plan": {"precision": "fp32"}}, None, "a DLA has fp16 and int8"),
        (AGX + "@jp7.2", {"build": DLA, "plan": FP16}, "11.2.1", "TensorRT 11.2.1 has no DLA, 11.4.1 has it again"),
        # a TensorRT that the system does not run
        (ORIN + "@jp6.2", {}, "11.4.1", "runs TensorRT from 10.3.0 to below 11, not 11.4.1"),
        (AGX + "@jp6.1", {}, "11.0.0", "to below 11, not 11.0.0"),
        (ORIN + "@jp7.2", {}, "11.4.1", "names AGX Orin and Thor alone"),
        (AGX + "@jp7.2", {}, "10.3.0.30", "from 10.16.2 to below 12, not 10.3.0.30"),
        (THOR + "@jp7.0", {}, "11.4.1", "to below 11"),
        (ORIN + "@jp6.0", {}, None, "has TensorRT 8.6.2 .*, a strongly typed graph needs 10.3; flash a newer JetPack"),
        (ORIN + "@jp5.1", {}, None, "^jetson-orin-nano@jp5.1 has TensorRT 8.5.2"),
        ("rtx-sm86", {}, "1.6.0", "runs TensorRT from 1.7 to below 1.8, not 1.6.0"),
        # the other TensorRT, the other layout
        (
            ORIN,
            {"plan": {"backend": "tensorrt-rtx", "precision": "fp16"}},
            None,
            'not for 8.7; a Jetson has classic TensorRT: backend = "tensorrt"',
        ),
        (
            ORIN,
            {"plan": {"precision": "int8", "layout": "u8s8"}},
            None,
            "has layout 'u8s8', TensorRT takes explicit Q/DQ",
        ),
        # more memory than there is
        (
            ORIN,
            {"build": {"workspace_mib": 4096}},
            None,
            "the smallest has 4096 MiB that its CPU shares; use at most 2048",
        ),
    ],
)
def test_a_mismatch_is_refused_in_words_that_say_what_to_do(name, bent, tensorrt, words):
    with pytest.raises(UsageError, match=words):
        preflight.check_target(name, changed(name, **bent), tensorrt=tensorrt)


@pytest.mark.parametrize(
    ("name", "bent", "tensorrt"),
    [
        (ORIN + "@jp6.2", {}, "10.3.0.30"),
        (ORIN + "@jp6.2", {}, "10.7.0"),
        (AGX + "@jp7.2", {}, "11.4.1"),
        (THOR + "@jp7.2", {}, "10.16.2.10"),
        (AGX + "@jp6.2", {"build": DLA, "plan": FP16}, None),
        (AGX + "@jp7.2", {"build": {"dla_core": 1}}, "11.4.1"),
        ("rtx-sm86", {}, "1.7.1.116"),
        (AGX, {"build": {"workspace_mib": 16384}}, None),
    ],
)
def test_what_fits_is_not_refused(name, bent, tensorrt):
    preflight.check_target(name, changed(name, **bent), tensorrt=tensorrt)


def test_a_cpu_target_is_no_business_of_tensorrts():
    assert preflight.refusals("x86-64", target.load("x86-64", FACTS)) == []


def test_a_target_of_the_users_own_must_say_what_it_is():
    plan = VariantPlan(id="fp16", backend="tensorrt", precision="fp16", source="mine")
    mine = target.Target(description="mine", arch=["aarch64"], variant=[plan])

    with pytest.raises(UsageError, match=r"need a \[gpu\] and a \[\[system\]\]"):
        preflight.check_target("mine.toml", mine)


def test_every_refusal_is_told_at_once():
    found = preflight.refusals(ORIN, changed(ORIN, plan=FP8, build={"dla_core": 0, "workspace_mib": 8000}))

    assert len(found) == 4  # two variants, the DLA, the memory


# The graph


def plan(precision, backend="tensorrt", **more):
    layout_ = "explicit" if precision == "int8" else "float"
    return VariantPlan(id=precision, backend=backend, precision=precision, source="a test", layout=layout_, **more)


def test_a_variants_own_graph_is_not_refused():
    for name in nets.NETS:
        model, ranges = rtx.calibrated(name)
        assert preflight.model_refusals(layout.lay_out(model, ranges), plan("int8"), Requires()) == []
        assert preflight.model_refusals(half.to_half(model, ranges)[0], plan("fp16"), Requires()) == []
        assert preflight.model_refusals(model, plan("fp32"), Requires()) == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_that_would_silently_be_built_in_fp32_is_refused(precision):
    with pytest.raises(CompileError, match=f"{precision} is asked for .* fp32 would be built"):
        preflight.check_model(nets.resnet(), plan(precision), Requires())


def with_node(kind, domain="", outputs=("y",)):
    net = Net(1, 3, 8, 8)
    net.nodes.append(helper.make_node(kind, ["image"], list(outputs), "the_node", domain=domain))
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            with_node("DynamicQuantizeLinear", outputs=("y", "s", "z")),
            "the_node is DynamicQuantizeLinear, .*scales must",
        ),
        (with_node("EfficientNMS_TRT", "own"), "a plugin that TensorRT 11 does not have; use ONNX's NonMaxSuppression"),
        (with_node("BatchedNMSDynamic_TRT", "own"), "a plugin that TensorRT 11 does not have"),
        (with_node("CropAndResizeDynamic", "own"), "a plugin that TensorRT 11 does not have"),
        (with_node("MyFlashAttention", "own"), "the_node is own.MyFlashAttention, not an operator of ONNX"),
    ],
)
def test_an_operator_that_tensorrt_does_not_have_is_named(model, words):
    with pytest.raises(CompileError, match=words):
        preflight.check_model(model, plan("fp32"), Requires())


def test_an_operator_inside_a_branch_is_found_too():
    inner = helper.make_graph([helper.make_node("MyOp", ["image"], ["z"], "deep", domain="own")], "b", [], [])
    model = with_node("If")
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))

    assert any("deep is own.MyOp" in why for why in preflight.model_refusals(model, plan("fp32"), Requires()))


@pytest.mark.parametrize(("opset", "refused"), [(8, True), (9, False), (20, False), (21, True)])
def test_an_opset_that_the_oldest_parser_does_not_read(opset, refused):
    model = nets.resnet()
    model.opset_import[0].version = opset

    assert (
        any("export at opset 20" in why for why in preflight.model_refusals(model, plan("fp32"), Requires())) is refused
    )


def pair(scale, zero):
    net = Net(1, 16, 8, 8)
    names = [net.constant(scale), *([net.constant(zero)] if zero is not None else [])]
    stored = net.node("QuantizeLinear", "image", *names, name="q")
    return net.model(net.node("DequantizeLinear", stored, *names, name="y"))


STEP = np.array(0.1, np.float32)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (pair(STEP, np.array(3, np.int8)), "q has zero point 3, TensorRT's grids are symmetric"),
        (pair(STEP, np.array(128, np.uint8)), "q has zero point 128"),
        (pair(STEP, np.array(0, np.uint8)), "q is uint8, TensorRT wants int8"),
        (pair(STEP, None), "q is uint8, TensorRT wants int8"),
        (pair(STEP, np.array(0, np.int16)), "q is int16"),
    ],
)
def test_a_grid_that_is_not_tensorrts_is_refused(model, words):
    with pytest.raises(CompileError, match=words):
        preflight.check_model(model, plan("int8"), Requires())


def test_a_scale_that_is_computed_is_refused():
    net = Net(1, 16, 8, 8)
    zero = net.constant(np.array(0, np.int8))
    scale = net.node("ReduceMax", net.node("Abs", "image"), keepdims=0)
    stored = net.node("QuantizeLinear", "image", scale, zero, name="q")
    model = net.model(net.node("DequantizeLinear", stored, scale, zero, name="y"))

    assert any("q has a scale that is computed" in w for w in preflight.model_refusals(model, plan("int8"), Requires()))


def test_turing_refuses_fp32_matrices_before_anything_is_built():
    turing = Requires(accelerators=[Accelerator(sm="7.5", at_least="1.7", below="1.8")])
    model, ranges = rtx.calibrated("transformer")

    found = preflight.model_refusals(model, plan("fp32", "tensorrt-rtx"), turing)

    assert len(found) == 17
    assert "in fp32, which TensorRT for RTX refuses on SM 7.5; give it fp16" in found[0]
    assert not preflight.model_refusals(half.to_half(model, ranges)[0], plan("fp16", "tensorrt-rtx"), turing)


def test_a_dla_takes_no_open_batch():
    model = nets.resnet()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    on_dla = plan("fp32", build=target.Build(dla_core=0))

    assert any("a DLA takes fixed ones" in why for why in preflight.model_refusals(model, on_dla, Requires()))
