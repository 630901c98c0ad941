"""The TensorRT variants on a GPU: built, loaded, inspected, run, and held to ONNX Runtime. One command: ``make gpu``.

Needs a GPU with its driver, cuda-python, and classic TensorRT (10.3 to 11.x) or, for the cards' engines, TensorRT for
RTX. Where they are not, these tests skip and say what is missing, in continuous integration too: no machine of it has a
GPU, and docs/tensorrt.md says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import rtx
import typed_nets as nets

from compiler.graph.onnxfile import Probe
from compiler.targets.target import Build
from compiler.tensorrt import api, builder, inspection, lower, preflight, run
from compiler.tensorrt.lower import Calibrated
from compiler.tensorrt.recipe import BuildRecipe, Request, batches
from skerry.disk import Disk
from skerry.errors import CompileError
from skerry.execution.parity import Noise

MIN_DB = {"fp32": 50.0, "fp16": 40.0, "int8": 15.0}  # fp32 convolutions may run in TF32: ten bits of mantissa


def look() -> tuple[str, str | None]:
    """The GPU's compute capability, and what this machine lacks."""
    try:
        return run.compute_capability(), None
    except CompileError as exc:
        return "", str(exc)


SM, LACKS = look()
pytestmark = pytest.mark.skipif(LACKS is not None, reason=f"not on a GPU: {LACKS}")

every = pytest.mark.parametrize("precision", MIN_DB)
every_net = pytest.mark.parametrize("net", nets.NETS)


@pytest.fixture(scope="module")
def trt():
    try:
        return api.load("tensorrt")
    except CompileError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("timing") / "timing.cache"


def graph_of(net, precision):
    model, ranges = rtx.calibrated(net)
    made, done = lower.write(Calibrated(model, ranges, tensors=nets.frames(4)), precision, rtx.said)
    return model, made, done.requested


def built(trt, made, folder: Path, **changes) -> tuple[bytes, bytes]:
    """The engine and its inspector's JSON."""
    onnx.save(made, folder / "model.onnx")
    recipe = changes.pop("recipe", BuildRecipe(build=Build(workspace_mib=1024)))
    named = {"model": str(folder / "model.onnx"), "out": str(folder / "engine"), "inspect": str(folder / "engine.json")}
    builder.build(trt, Request(backend="tensorrt", recipe=recipe, **named, **changes), rtx.said, Disk())
    return (folder / "engine").read_bytes(), (folder / "engine.json").read_bytes()


@every
@every_net
def test_a_variant_runs_and_is_what_was_asked_for(trt, net, precision, tmp_path):
    model, made, requested = graph_of(net, precision)
    kinds = {node.name: node.op_type for node in made.graph.node}

    engine, described = built(trt, made, tmp_path)

    found = inspection.inspect(described, requested, kinds)
    print(f"{net} {precision}: {[(x.name, x.requested, x.real) for x in found.layers]}, {found.reformats} reformats")
    found.check()
    names = [output.name for output in model.graph.output]
    exact, literal = (Probe(m, names, threads=1, literal=True) for m in (model, made))
    to_fp32, to_literal = Noise(), Noise()
    with run.Engine(trt, engine) as loaded:
        for frame in nets.frames(4):
            results = loaded({"image": frame})
            for (name, wanted), (_, emulated) in zip(exact(frame), literal(frame), strict=True):
                to_fp32.add(wanted, results[name])
                to_literal.add(emulated, results[name])
    print(f"{net} {precision}: {to_fp32.db():.1f} dB to fp32, {to_literal.db():.1f} dB to its emulation")
    assert to_fp32.db() > MIN_DB[precision]
    assert to_literal.db() > MIN_DB[precision]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@every_net
def test_a_cards_engine_built_ahead_of_time_runs(net, precision, tmp_path):
    """TensorRT for RTX finishes its kernels on the card; what a bundle carries is what runs here."""
    if SM not in preflight.RTX_SMS:
        pytest.skip(f"TensorRT for RTX builds for SM {', '.join(preflight.RTX_SMS)}, this is {SM}")
    model, made, _ = graph_of(net, precision)

    rtx.build(made, tmp_path, sms=[SM])

    noise = Noise()
    with run.Engine(rtx.module(), (tmp_path / "model.engine").read_bytes()) as loaded:
        for frame in nets.frames(4):
            results = loaded({"image": frame})
            for name, wanted in Probe(model, list(results), threads=1)(frame):
                noise.add(wanted, results[name])
    print(f"{net} {precision} on SM {SM}: {noise.db():.1f} dB to fp32")
    assert noise.db() > MIN_DB[precision]


def test_a_graph_that_says_fp32_is_found_out_when_less_was_asked_for(trt, tmp_path):
    """The fault that the inspection is for, planted on a real engine."""
    model, made, _ = graph_of("resnet", "fp32")
    _, _, asked = graph_of("resnet", "fp16")

    _, described = built(trt, made, tmp_path)

    with pytest.raises(CompileError, match="fp16 asked, fp32 built"):
        inspection.inspect(described, asked, {n.name: n.op_type for n in model.graph.node}).check()


def test_a_second_build_with_the_timing_cache_is_quicker(trt, cache, tmp_path):
    _, made, _ = graph_of("detector", "int8")
    took = []
    for _ in range(2):
        began = time.perf_counter()
        built(trt, made, tmp_path, timing_cache=str(cache))
        took.append(time.perf_counter() - began)

    print(f"built in {took[0]:.1f} s, again in {took[1]:.1f} s")
    assert cache.stat().st_size > 0
    assert took[1] < took[0]


def test_an_open_batch_runs_at_every_size(trt, tmp_path):
    model, made, _ = graph_of("resnet", "fp16")
    for m in (model, made):
        for border in [*m.graph.input, *m.graph.output]:
            border.type.tensor_type.shape.dim[0].dim_param = "batch"
        del m.graph.value_info[:]
    recipe = BuildRecipe(build=Build(workspace_mib=1024), profiles=batches(made, 1, 16))

    engine, _ = built(trt, made, tmp_path, recipe=recipe)

    with run.Engine(trt, engine) as loaded:
        for count in (1, 4, 16):
            frames = np.concatenate(nets.frames(count))
            noise = Noise()
            ((_, wanted),) = Probe(model, ["scores"], threads=1)(frames)
            noise.add(wanted, loaded({"image": frames})["scores"])
            assert noise.db() > MIN_DB["fp16"]


def test_an_engine_that_is_garbage_is_refused_and_the_process_lives(trt):
    with pytest.raises(CompileError, match="does not load here"):
        run.Engine(trt, os.urandom(4096))
