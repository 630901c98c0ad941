"""From a calibrated graph to what a TensorRT variant ships, for every target and every kind of net."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import rtx
import typed_nets as nets
from nets import Net

from compiler.graph.onnxfile import Probe
from compiler.host import Host
from compiler.quantization import calibrate, quantize
from compiler.targets import target
from compiler.tensorrt import api, layout, lower, placement
from compiler.tensorrt.lower import Calibrated
from compiler.tensorrt.recipe import BuildRecipe
from skerry.disk import Disk
from skerry.errors import CompileError
from skerry.execution.parity import Noise
from skerry.manifest import DeviceFacts

FACTS = DeviceFacts(arch="x86_64", cpu=[], backends=[])
MIN_SQNR_DB = 15.0  # what a recipe asks of a variant if it says nothing (skerry.manifest.Limits)
ROOT = Path(__file__).parents[3]


def planned(name, variant):
    return next((p, r) for p, r in target.plans([target.load(name, FACTS)]) if p.id == variant)


def lowered(source, folder, name, variant):
    """Both steps; what `write` said, and the engine's facts."""
    plan, requires = planned(name, variant)
    if plan.backend == "tensorrt-rtx":
        rtx.module()
    made, done = lower.write(source, plan.precision, rtx.said)
    return done, lower.lower(made, folder, plan, requires, rtx.said, Disk())


def source_of(name, **more):
    return Calibrated(*rtx.calibrated(name), **more)


def error_db(made, original, frames):
    """The worst output against fp32, every node as it stands."""
    names = [output.name for output in original.graph.output]
    runs = [Probe(m, names, threads=1, literal=True) for m in (original, made)]
    noise = {name: Noise() for name in names}
    for frame in frames:
        for (name, wanted), (_, found) in zip(*(run(frame) for run in runs), strict=True):
            noise[name].add(wanted, found)
    return min(pooled.db() for pooled in noise.values())


def test_a_jetson_gets_a_graph_and_how_to_build_it(tmp_path):
    done, built = lowered(source_of("resnet"), tmp_path, "jetson-orin-nano", "orin-int8")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.json", "model.onnx"]
    recipe = msgspec.json.decode((tmp_path / "build.json").read_bytes(), type=BuildRecipe)
    assert (recipe.network, recipe.build.workspace_mib, recipe.build.dla_core) == ("strongly typed", 512, None)
    assert recipe.requested == done.requested == layout.requested(onnx.load(tmp_path / "model.onnx"))
    assert list(recipe.requested.values()).count("int8") == 5
    assert done.left == {
        "conv_0": "3 to 32 channels are fewer than 16",
        "scores": "a matrix of 10x64 is too thin",
    }
    assert built is None


def test_a_card_gets_its_engine_too_and_it_is_tied_to_its_release(tmp_path):
    _, built = lowered(source_of("resnet"), tmp_path, "rtx-sm86", "rtx-sm86-fp16")

    assert built.bytes == (tmp_path / "model.engine").stat().st_size
    _, requires = planned("rtx-sm86", "rtx-sm86-fp16")
    (wanted,) = lower.pinned(requires, built).accelerators
    version = api.version("tensorrt-rtx")
    assert (wanted.sm, wanted.at_least) == ("8.6", version)
    assert wanted.below == ".".join([*version.split(".")[:-1], str(int(version.split(".")[-1]) + 1)])
    assert lower.pinned(requires, msgspec.to_builtins(built)) == lower.pinned(requires, built)


def test_an_open_batch_has_its_profile_in_the_recipe_and_in_the_engine(tmp_path):
    rtx.module()
    made, _ = lower.write(source_of("resnet"), "int8", rtx.said)
    for border in [*made.graph.input, *made.graph.output]:
        border.type.tensor_type.shape.dim[0].dim_param = "batch"

    built = lower.lower(made, tmp_path, *planned("rtx-sm86", "rtx-sm86-int8"), rtx.said, Disk(), batch=(1, 16))

    assert built.bytes > 10_000
    (profile,) = msgspec.json.decode((tmp_path / "build.json").read_bytes(), type=BuildRecipe).profiles
    assert (profile.input, profile.least[0], profile.most[0]) == ("image", 1, 16)


def test_what_was_done_is_a_value_that_evidence_can_hold(tmp_path):
    source = Calibrated(*calibrated_in_parts())

    done, _ = lowered(source, tmp_path, "jetson-thor", "thor-fp16")

    told = json.loads(msgspec.json.encode(done))
    assert len(told["fused"]) == 5
    assert {island["kind"] for island in told["islands"]} == {"Softmax"}


def calibrated_in_parts():
    model = nets.transformer(in_parts=True, loud=300.0)
    return model, calibrate.ranges(model, nets.frames(4), calibrate.DEFAULT, 1, rtx.said)


def test_kept_nodes_stay_half(tmp_path):
    layers = placement.decide(*rtx.calibrated("resnet")).layers

    done, _ = lowered(source_of("resnet", keep_float=layers[:1]), tmp_path, "jetson-orin-nano", "orin-int8")

    assert done.requested[layers[0]] == "fp16"
    assert done.left[layers[0]] == "asked for"


def test_biases_are_corrected_where_there_are_tensors(tmp_path):
    model, _ = rtx.calibrated("detector")
    (tmp_path / "plain").mkdir()
    (tmp_path / "corrected").mkdir()
    for folder, tensors in (("plain", ()), ("corrected", nets.frames(8))):
        lowered(source_of("detector", tensors=tensors), tmp_path / folder, "jetson-orin-nano", "orin-int8")

    plain, corrected = (
        error_db(onnx.load(tmp_path / folder / "model.onnx"), model, nets.frames(4))
        for folder in ("plain", "corrected")
    )

    assert corrected > plain


def test_a_net_with_nothing_to_quantize_is_refused_rather_than_shipped_as_int8(tmp_path):
    net = Net(1, 3, 64, 64)
    model = net.model(net.conv("image", 3, 8, 3))
    source = Calibrated(model, calibrate.ranges(model, nets.frames(2), calibrate.DEFAULT, 1, rtx.said))

    with pytest.raises(CompileError, match=r"orin-int8: int8 is asked for and the graph has no Q/DQ pair"):
        lowered(source, tmp_path, "jetson-orin-nano", "orin-int8")
    assert not any(tmp_path.iterdir())


def test_the_same_source_gives_the_same_files(tmp_path):
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        lowered(source_of("resnet"), folder, "jetson-orin-nano", "orin-int8")
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})

    assert made[0] == made[1]


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    "net", ["resnet", *(pytest.param(n, marks=pytest.mark.slow) for n in nets.NETS if n != "resnet")]
)
def test_every_kind_of_variant_is_built_for_every_card_and_says_the_same_as_fp32(net, variant, tmp_path):
    """A Jetson's graph is the same one: its SM is not among the cards', parser and rules are alike."""
    model, _ = rtx.calibrated(net)
    made = model
    if variant != "fp32":
        made, _ = lower.write(source_of(net, tensors=nets.frames(4)), variant, rtx.said)

    assert error_db(made, model, nets.frames(4)) > MIN_SQNR_DB
    assert rtx.build(made, tmp_path, sms=rtx.SMS[variant == "fp32" :]).bytes > 10_000  # Turing has no fp32 products


EVERY = [
    (name, plan.id)
    for name in target.names()
    for plan, _ in target.plans([target.load(name, FACTS)])
    if plan.backend != "onnxrt"
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_every_targets_variants_are_lowered_as_a_compilation_lowers_them(name, variant, tmp_path):
    lowered(source_of("mobilenet"), tmp_path, name, variant)

    made = onnx.load(tmp_path / "model.onnx")
    assert error_db(made, rtx.calibrated("mobilenet")[0], nets.frames(2)) > MIN_SQNR_DB
    assert (tmp_path / "model.engine").exists() is name.startswith("rtx")


@pytest.fixture(scope="module")
def mobilenetv2(tmp_path_factory):
    """The zoo's own net with random weights, exported as a compilation exports it, its values calibrated."""
    folder = tmp_path_factory.mktemp("mobilenetv2")
    load = {"build": "model.py:build", "weights": None, "shape": [1, 3, 224, 224], "outputs": ["scores"]}
    with Host(ROOT / "models" / "mobilenetv2", load, rtx.said) as host:
        host.call(
            "export", shape=[1, 3, 224, 224], input_name="image", outputs=["scores"], out=str(folder / "net.onnx")
        )
    quantize.prepare(folder / "net.onnx", folder / "prepared.onnx")
    model = onnx.load(folder / "prepared.onnx")
    return model, calibrate.ranges(model, nets.frames(4, (1, 3, 224, 224)), calibrate.DEFAULT, 1, rtx.said)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_mobilenetv2_from_torch_is_built_in_every_precision(mobilenetv2, variant, tmp_path):
    model, _ = mobilenetv2
    frames = nets.frames(3, (1, 3, 224, 224))
    made = model
    if variant != "fp32":
        done, _ = lowered(Calibrated(*mobilenetv2), tmp_path, "jetson-orin-nano", f"orin-{variant}")
        made = onnx.load(tmp_path / "model.onnx")
        assert list(done.requested.values()).count("int8") == (34 if variant == "int8" else 0)
        assert done.islands == []

    assert rtx.build(made, tmp_path, sms=rtx.SMS[variant == "fp32" :]).bytes > 1_000_000
    assert error_db(made, model, frames) > {"fp32": 100, "fp16": 40, "int8": MIN_SQNR_DB}[variant]
    assert np.prod(made.graph.input[0].type.tensor_type.shape.dim[2].dim_value) == 224
