"""The laws of every backend, held by each on the same files: owned buffers, nothing hidden, failures in one line."""

from __future__ import annotations

import gc
import os
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from runtimes import Runtime, one_node, threads_of_this_process

from skerry.errors import BackendError
from skerry.execution.backend import BACKENDS, available, backend_class, load_variant
from skerry.manifest import Manifest


def installed(name):
    return pytest.param(name, marks=pytest.mark.skipif(name not in available(), reason=f"{name} is not installed"))


@pytest.fixture(scope="module", params=map(installed, BACKENDS))
def runtime(request):
    return Runtime(request.param)


def complains(error):
    """Its message, after a look at its form: one line that names the model."""
    message = str(error.value)
    assert message.startswith("model.onnx")
    assert "\n" not in message
    assert len(message) < 400
    return message


# --- buffers -------------------------------------------------------------------------------------------------------


def test_the_model_reads_its_own_input_buffer_and_writes_its_own_output(runtime, tmp_path):
    backend = runtime.load(tiny.model(), tmp_path)
    (image,) = backend.inputs.values()
    assert (image.shape, image.dtype) == ((1, 3, tiny.SIZE, tiny.SIZE), np.float32)
    image[...] = 0
    image[0, 1] = 0.5
    np.testing.assert_allclose(backend.run()["scores"], [[0, 2, 0]])
    image[0, 2] = 1
    np.testing.assert_allclose(backend.run()["scores"], [[0, 2, 4]])
    assert next(iter(backend.inputs.values())) is image


def test_an_output_is_a_view_until_the_next_run(runtime, tmp_path):
    backend = runtime.load(tiny.model(), tmp_path)
    first = backend.run()["scores"]
    kept = first.copy()
    backend.inputs["image"][...] = 1
    second = backend.run()["scores"]
    assert np.shares_memory(first, second)
    assert (second != kept).all()


def test_a_run_leaves_the_input_as_it_was(runtime, tmp_path):
    backend = runtime.load(tiny.model(), tmp_path)
    backend.inputs["image"][...] = 0.25
    backend.run()
    assert (backend.inputs["image"] == 0.25).all()


def test_two_sessions_of_one_model_share_no_buffer(runtime, tmp_path):
    one, other = runtime.load(tiny.model(), tmp_path), runtime.load(tiny.model(), tmp_path)
    one.inputs["image"][...] = 1
    assert (other.run()["scores"] == 0).all()
    assert (one.run()["scores"] == 4).all()


def test_bytes_in_and_whole_numbers_out(runtime, tmp_path):
    backend = runtime.load(
        one_node("Cast", TensorProto.UINT8, [2, 3], out_dtype=TensorProto.INT64, to=TensorProto.INT64), tmp_path
    )
    backend.inputs["x"][...] = 200
    found = backend.run()["y"]
    assert found.dtype == np.int64
    assert (found == 200).all()


def test_an_output_whose_size_the_data_decides(runtime, tmp_path):
    model = one_node("NonZero", TensorProto.FLOAT, [2, 3], out_shape=[2, "many"], out_dtype=TensorProto.INT64)
    backend = runtime.load(model, tmp_path)
    assert backend.run()["y"].shape == (2, 0)
    backend.inputs["x"][1, 2] = 1
    assert backend.run()["y"].tolist() == [[1], [2]]
    backend.inputs["x"][...] = 1
    assert backend.run()["y"].shape == (2, 6)


def test_fixed_and_varying_outputs_side_by_side(runtime, tmp_path):
    model = one_node("NonZero", TensorProto.FLOAT, [2, 3], out_shape=[2, "many"], out_dtype=TensorProto.INT64)
    model.graph.node.append(helper.make_node("Neg", ["x"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3]))
    backend = runtime.load(model, tmp_path)
    for column in range(3):
        backend.inputs["x"][:, column] = 1
        found = backend.run()
        assert list(found) == ["y", "z"]
        assert found["y"].shape == (2, 2 * (column + 1))
        np.testing.assert_array_equal(found["z"], -backend.inputs["x"])


def test_they_say_the_same(runtime, tmp_path):
    ours, theirs = runtime.load(tiny.model(), tmp_path), Runtime("onnxrt").load(tiny.model(), tmp_path)
    noise = np.random.default_rng(0).random((1, 3, tiny.SIZE, tiny.SIZE), np.float32)
    ours.inputs["image"][...] = theirs.inputs["image"][...] = noise
    np.testing.assert_allclose(ours.run()["scores"], theirs.run()["scores"], rtol=1e-5)


def test_a_scalar_output(runtime, tmp_path):
    backend = runtime.load(one_node("ReduceSum", TensorProto.FLOAT, [2, 3], out_shape=[], keepdims=0), tmp_path)
    backend.inputs["x"][...] = 2
    assert backend.run()["y"] == 12


def test_an_output_that_is_only_an_input_passed_through(runtime, tmp_path):
    backend = runtime.load(one_node("Identity", TensorProto.FLOAT, [2, 3]), tmp_path)
    backend.inputs["x"][...] = 3
    assert (backend.run()["y"] == 3).all()
    backend.inputs["x"][...] = 4
    assert (backend.run()["y"] == 4).all()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT32, TensorProto.BOOL]
)
def test_an_input_that_no_manifest_can_describe_is_refused(runtime, tmp_path, dtype):
    with pytest.raises(BackendError) as error:
        runtime.load(one_node("Identity", dtype, [1, 3]), tmp_path)
    assert "expected a fixed-size tensor" in complains(error)


def test_an_input_of_strings_is_refused(runtime, tmp_path):
    with pytest.raises(BackendError) as error:
        runtime.load(one_node("Identity", TensorProto.STRING, [1]), tmp_path)
    assert "string" in complains(error)


def test_a_graph_that_takes_many_images_takes_one_here(runtime, tmp_path):
    backend = runtime.load(one_node("Relu", TensorProto.FLOAT, ["batch", 3, 8, 8], ["batch", 3, 8, 8]), tmp_path)

    assert backend.inputs["x"].shape == (1, 3, 8, 8)
    assert backend.run()["y"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("shape", [["batch", 3, "h", "w"], [1, 3, None, None], [0, 3]])
def test_an_input_without_a_fixed_size_is_refused(runtime, tmp_path, shape):
    with pytest.raises(BackendError) as error:
        runtime.load(one_node("Identity", TensorProto.FLOAT, shape), tmp_path)
    assert "input x" in complains(error)


@pytest.mark.parametrize("side", [1 << 20, 1 << 33])
def test_an_input_that_no_machine_can_hold_is_refused(runtime, tmp_path, side):
    with pytest.raises(BackendError):
        runtime.load(one_node("Identity", TensorProto.FLOAT, [1, side, side, side]), tmp_path)


def test_an_output_that_is_no_tensor_is_refused(runtime, tmp_path):
    model = one_node("SequenceConstruct", TensorProto.FLOAT, [2, 3])
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2, 3]))
    with pytest.raises(BackendError):
        runtime.load(model, tmp_path).run()


@pytest.mark.parametrize("raw", [b"", b"hello", b"\0" * 100, b"\xff" * 1000, b"{}"])
def test_garbage_is_no_model(runtime, tmp_path, raw, capfd):
    (tmp_path / "model.onnx").write_bytes(raw)
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "model.onnx")
    complains(error)
    assert not any(capfd.readouterr())


def last_words(at, path):
    """What loading and running the model says if it fails, as it may only fail."""
    try:
        at(path).run()
    except BackendError as exc:
        return str(exc)
    return ""


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_model_loads_or_says_why_not_in_one_line(runtime, tmp_path_factory, data):
    raw = bytearray(tiny.model().SerializeToString())
    if data.draw(st.booleans(), "truncate"):
        del raw[data.draw(st.integers(0, len(raw) - 1), "at") :]
    else:
        for _ in range(data.draw(st.integers(1, 4), "flips")):
            raw[data.draw(st.integers(0, 200), "at")] = data.draw(st.integers(0, 255), "byte")
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(raw)
    assert "\n" not in last_words(runtime.at, path)


def test_a_model_that_is_not_there(runtime, tmp_path):
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "model.onnx")
    complains(error)


def test_an_operator_of_nobody(runtime, tmp_path):
    with pytest.raises(BackendError) as error:
        runtime.load(one_node("Frobnicate", TensorProto.FLOAT, [1, 3]), tmp_path)
    assert "Frobnicate" in complains(error)


# --- external data -------------------------------------------------------------------------------------------------


def with_weights_at(location, folder, **placed):
    """Writes the tiny model to ``folder``; its weights are said to lie at ``location``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny.model()
    table = model.graph.initializer[0]
    data = numpy_helper.to_array(table).tobytes()
    table.raw_data = data
    set_external_data(table, location, **{"offset": 0, "length": len(data), **placed})
    table.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return data


def test_weights_beside_the_model_are_read(runtime, tmp_path):
    data = with_weights_at("weights.bin", tmp_path)
    (tmp_path / "weights.bin").write_bytes(data)
    backend = runtime.at(tmp_path / "model.onnx")
    backend.inputs["image"][...] = 1
    assert (backend.run()["scores"] == 4).all()


# Older ones read external data from anywhere. Only who is trusted to sign can make use of it: docs/agent.md.
refuses_outside = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24), reason="ONNX Runtime before 1.24 looks outside"
)


@refuses_outside
@pytest.mark.parametrize("way", ["../secret.bin", "../../variants/secret.bin", "sub/../../secret.bin"])
def test_weights_outside_the_models_folder_cannot_be_read(runtime, tmp_path, way):
    folder = tmp_path / "variants" / "fp32"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "variants" / "secret.bin").write_bytes(with_weights_at(way, folder))
    with pytest.raises(BackendError) as error:
        runtime.at(folder / "model.onnx")
    complains(error)


@refuses_outside
def test_weights_at_an_absolute_path_cannot_be_read(runtime, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(with_weights_at(str(secret), tmp_path / "fp32"))
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "fp32" / "model.onnx")
    complains(error)


@refuses_outside
def test_weights_behind_a_link_cannot_be_read(runtime, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(with_weights_at("weights.bin", tmp_path / "fp32"))
    (tmp_path / "fp32" / "weights.bin").symlink_to(secret)
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "fp32" / "model.onnx")
    complains(error)


def test_weights_in_another_process_memory_or_device_cannot_be_read(runtime, tmp_path):
    for number, location in enumerate(["/proc/self/mem", "/dev/zero", "*/_ORT_MEM_ADDR_/*"]):
        folder = tmp_path / str(number)
        with_weights_at(location, folder, offset=4096)
        with pytest.raises(BackendError) as error:
            runtime.at(folder / "model.onnx")
        complains(error)


@pytest.mark.parametrize(
    ("size", "placed"), [(0, {}), (-1, {}), (2304, {"offset": 8}), (2304, {"offset": -8}), (2304, {"length": 10})]
)
def test_weights_that_are_shorter_than_the_model_says_are_refused(runtime, tmp_path, size, placed):
    data = with_weights_at("weights.bin", tmp_path, **placed)
    (tmp_path / "weights.bin").write_bytes(data[:size])
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "model.onnx")
    complains(error)


def test_weights_that_are_missing_are_named(runtime, tmp_path):
    with_weights_at("weights.bin", tmp_path)
    with pytest.raises(BackendError) as error:
        runtime.at(tmp_path / "model.onnx")
    assert "weights.bin" in complains(error)


# --- what really loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_the_facts_are_those_of_the_session_that_loaded(runtime, tmp_path, threads):
    facts = runtime.load(tiny.model(), tmp_path, threads=threads).facts()
    assert (facts.backend, facts.threads) == (runtime.name, threads)
    assert facts.version
    assert runtime.name in available()


def test_a_backend_is_found_by_its_name_and_no_other():
    with pytest.raises(BackendError, match=r"unknown backend 'abacus'; this Skerry has onnxrt, openvino: update Skerr"):
        backend_class("abacus")


def bundle(runtime, folder, bend=lambda fields: fields):
    tiny.Tiny(bend=bend).write(folder)
    manifest = Manifest.parse((folder / "bundle.json").read_bytes())
    return folder, manifest, msgspec.structs.replace(manifest.variant("fp32"), backend=runtime.name)


def test_a_variant_that_fits_its_manifest_loads(runtime, tmp_path):
    backend = load_variant(*bundle(runtime, tmp_path / "tiny"), threads=1)
    assert list(backend.inputs) == ["image"]


def renamed_input(fields):
    (entry,) = fields["inputs"]
    return {**fields, "inputs": [msgspec.structs.replace(entry, name="picture")]}


def larger_input(fields):
    (entry,) = fields["inputs"]
    return {**fields, "inputs": [msgspec.structs.replace(entry, shape=[1, 3, 16, 16])]}


def byte_input(fields):
    (entry,) = fields["inputs"]
    return {**fields, "inputs": [msgspec.structs.replace(entry, dtype="uint8")]}


@pytest.mark.parametrize("bend", [renamed_input, larger_input, byte_input])
def test_a_variant_with_other_inputs_than_its_manifest_says_is_refused(runtime, tmp_path, bend):
    with pytest.raises(BackendError, match=r"fp32: expected inputs .*, the model has .*; compile it again"):
        load_variant(*bundle(runtime, tmp_path / "tiny", bend), threads=1)


def renamed_output(fields):
    (score,) = fields["outputs"]
    post = msgspec.structs.replace(fields["postprocess"], scores="logits")
    return {**fields, "outputs": [msgspec.structs.replace(score, name="logits")], "postprocess": post}


def longer_output(fields):
    (score,) = fields["outputs"]
    return {**fields, "outputs": [msgspec.structs.replace(score, shape=[1, 5])]}


@pytest.mark.parametrize("bend", [renamed_output, longer_output])
def test_a_variant_with_other_outputs_than_its_manifest_says_is_refused(runtime, tmp_path, bend):
    with pytest.raises(BackendError, match=r"fp32: .*outputs.*; compile it again"):
        load_variant(*bundle(runtime, tmp_path / "tiny", bend), threads=1)


# --- what it takes of the machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_takes_no_more_of_the_machine_than_it_was_given(runtime, tmp_path, threads):
    session = runtime.load(products(16, 512), tmp_path, threads=threads)
    session.run()
    used, started = time.process_time(), time.monotonic()
    for _ in range(20):
        session.run()
    assert time.process_time() - used < (time.monotonic() - started) * (threads + 0.2)


def test_sessions_that_come_and_go_leave_no_threads_behind(runtime, tmp_path):
    counts = []
    for _ in range(3):
        session = runtime.load(tiny.model(), tmp_path, threads=2)
        session.run()
        session.close()
        gc.collect()
        counts.append(threads_of_this_process())
    assert counts[2] <= counts[0]


def products(count, size):
    """A model that has something to do."""
    values = ["x", *(f"v{n}" for n in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(values)]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, size])],
        [numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_session_that_waits_does_not_spin(runtime, tmp_path):
    backend = runtime.load(tiny.model(), tmp_path, threads=3)
    backend.run()
    started = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - started < 0.1


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_closed_session_gives_its_memory_back(runtime, tmp_path):
    weights = numpy_helper.from_array(np.full((8 << 20,), 0.5, np.float32), "many")  # 32 MiB
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["many", "mean"], ["fed_many"]),  # depends on the input: the weights stay
        helper.make_node("ReduceSum", ["fed_many"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["fed"]),
    ]
    model = tiny.model(nodes, "fed", [weights])
    runtime.load(model, tmp_path).close()  # what the library itself takes, it keeps
    gc.collect()
    before = resident_mib()
    for _ in range(4):
        backend = runtime.load(model, tmp_path)
        backend.run()
        assert resident_mib() - before > 24
        backend.close()
    gc.collect()
    assert resident_mib() - before < 24


def test_loading_reads_no_more_than_the_model(runtime, tmp_path):
    """The profile, the log and the optimised model stay unwritten: a device's folder is as it was."""
    backend = runtime.load(tiny.model(), tmp_path)
    backend.run()
    backend.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_model_on_disk_is_a_plain_onnx_file(runtime, tmp_path):
    runtime.load(tiny.model(), tmp_path)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
