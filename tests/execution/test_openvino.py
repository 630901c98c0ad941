"""The OpenVINO backend: the laws of every backend, on the same files that ONNX Runtime reads."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from skerry.errors import BackendError
from skerry.execution.backend import available, backend_class
from skerry.execution.onnxrt import OnnxrtBackend

openvino = pytest.importorskip("openvino")


def load(model, folder, threads=1):
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return backend_class("openvino")(path, threads=threads)


def one_node(op, dtype, shape, out_shape=None, out_dtype=None, **attributes):
    """A model of one node from ``x`` to ``y``."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", out_dtype or dtype, shape if out_shape is None else out_shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def complains(error):
    """Its message, after a look at its form: one line that names the model."""
    message = str(error.value)
    assert message.startswith("model.onnx")
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_the_model_reads_its_own_input_buffer_and_writes_its_own_output(tmp_path):
    backend = load(tiny.model(), tmp_path)
    (image,) = backend.inputs.values()
    image[...] = 0
    image[0, 1] = 0.5
    first = backend.run()["scores"]
    np.testing.assert_allclose(first, [[0, 2, 0]])
    image[0, 2] = 1
    second = backend.run()["scores"]
    np.testing.assert_allclose(second, [[0, 2, 4]])
    assert np.shares_memory(first, second)
    assert next(iter(backend.inputs.values())) is image


def test_two_models_share_no_buffer(tmp_path):
    one, other = load(tiny.model(), tmp_path), load(tiny.model(), tmp_path)
    one.inputs["image"][...] = 1
    assert (other.run()["scores"] == 0).all()
    assert (one.run()["scores"] == 4).all()


def test_it_says_what_onnxruntime_says(tmp_path):
    ours, theirs = load(tiny.model(), tmp_path), OnnxrtBackend(tmp_path / "model.onnx", threads=1)
    noise = np.random.default_rng(0).random((1, 3, tiny.SIZE, tiny.SIZE), np.float32)
    ours.inputs["image"][...] = theirs.inputs["image"][...] = noise
    np.testing.assert_allclose(ours.run()["scores"], theirs.run()["scores"], rtol=1e-5)


def test_bytes_in_and_whole_numbers_out(tmp_path):
    backend = load(
        one_node("Cast", TensorProto.UINT8, [2, 3], out_dtype=TensorProto.INT64, to=TensorProto.INT64), tmp_path
    )
    backend.inputs["x"][...] = 200
    found = backend.run()["y"]
    assert found.dtype == np.int64
    assert (found == 200).all()


def test_an_output_whose_size_the_data_decides(tmp_path):
    model = one_node("NonZero", TensorProto.FLOAT, [2, 3], out_shape=[2, "many"], out_dtype=TensorProto.INT64)
    backend = load(model, tmp_path)
    assert backend.run()["y"].shape == (2, 0)
    backend.inputs["x"][1, 2] = 1
    assert backend.run()["y"].tolist() == [[1], [2]]


def test_fp32_is_fp32_where_the_cpu_has_bf16(tmp_path):
    """A third in bf16 is off by 1e-3."""
    backend = load(one_node("Identity", TensorProto.FLOAT, [1, 64]), tmp_path)
    assert backend._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    left, right = np.full((1, 512), 1 / 3, np.float32), np.full((512, 512), 1 / 3, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, left.shape)],
        [numpy_helper.from_array(right, "w")],
    )
    product = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path)
    product.inputs["x"][...] = left
    np.testing.assert_allclose(product.run()["y"], left @ right, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_facts_are_those_of_the_model_that_loaded(tmp_path, threads):
    facts = load(tiny.model(), tmp_path, threads=threads).facts()
    assert (facts.backend, facts.provider, facts.threads) == ("openvino", "CPU", threads)
    assert facts.version == openvino.__version__
    assert "openvino" in available()


@pytest.mark.parametrize(
    ("dtype", "shape"), [(TensorProto.FLOAT, ["n", 3]), (TensorProto.FLOAT16, [1, 3]), (TensorProto.FLOAT, [0, 3])]
)
def test_an_input_that_cannot_be_owned_is_refused(tmp_path, dtype, shape):
    with pytest.raises(BackendError) as error:
        load(one_node("Neg", dtype, shape), tmp_path)
    assert "expected a fixed-size tensor" in complains(error)


def test_an_operator_of_nobody_is_named(tmp_path):
    with pytest.raises(BackendError) as error:
        load(one_node("Frobnicate", TensorProto.FLOAT, [1, 3]), tmp_path)
    assert "Frobnicate" in complains(error)


@pytest.mark.parametrize("raw", [b"", b"hello", b"\0" * 100, b"\xff" * 1000, b"{}"])
def test_garbage_is_no_model(tmp_path, raw, capfd):
    with pytest.raises(BackendError) as error:
        load(raw, tmp_path)
    complains(error)
    assert not any(capfd.readouterr())


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(BackendError) as error:
        backend_class("openvino")(tmp_path / "model.onnx", threads=1)
    complains(error)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_model_loads_or_says_why_not_in_one_line(tmp_path_factory, data):
    raw = bytearray(tiny.model().SerializeToString())
    if data.draw(st.booleans(), "truncate"):
        del raw[data.draw(st.integers(0, len(raw) - 1), "at") :]
    else:
        for _ in range(data.draw(st.integers(1, 4), "flips")):
            raw[data.draw(st.integers(0, 200), "at")] = data.draw(st.integers(0, 255), "byte")
    try:
        load(bytes(raw), tmp_path_factory.mktemp("damaged")).run()
    except BackendError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 - it may as well load


# --- external data ---------------------------------------------------------------------------------------------------


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


def test_weights_beside_the_model_are_read(tmp_path):
    data = with_weights_at("weights.bin", tmp_path)
    (tmp_path / "weights.bin").write_bytes(data)
    backend = backend_class("openvino")(tmp_path / "model.onnx", threads=1)
    backend.inputs["image"][...] = 1
    assert (backend.run()["scores"] == 4).all()


@pytest.mark.parametrize("way", ["../secret.bin", "../../variants/secret.bin", "sub/../../secret.bin", "absolute"])
def test_weights_outside_the_models_folder_cannot_be_read(tmp_path, way):
    folder, secret = tmp_path / "variants" / "fp32", tmp_path / "variants" / "secret.bin"
    (folder / "sub").mkdir(parents=True)
    secret.write_bytes(with_weights_at(str(secret) if way == "absolute" else way, folder))
    with pytest.raises(BackendError) as error:
        backend_class("openvino")(folder / "model.onnx", threads=1)
    complains(error)


def test_weights_behind_a_link_cannot_be_read(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(with_weights_at("weights.bin", tmp_path / "fp32"))
    (tmp_path / "fp32" / "weights.bin").symlink_to(secret)
    with pytest.raises(BackendError) as error:
        backend_class("openvino")(tmp_path / "fp32" / "model.onnx", threads=1)
    complains(error)


@pytest.mark.parametrize(
    ("size", "placed"), [(0, {}), (-1, {}), (2304, {"offset": 8}), (2304, {"offset": -8}), (2304, {"length": 10})]
)
def test_weights_that_are_shorter_than_the_model_says_are_refused(tmp_path, size, placed):
    data = with_weights_at("weights.bin", tmp_path, **placed)
    (tmp_path / "weights.bin").write_bytes(data[:size])
    with pytest.raises(BackendError) as error:
        backend_class("openvino")(tmp_path / "model.onnx", threads=1)
    complains(error)


def test_weights_that_are_missing_are_told(tmp_path):
    with_weights_at("weights.bin", tmp_path)
    with pytest.raises(BackendError) as error:
        backend_class("openvino")(tmp_path / "model.onnx", threads=1)
    complains(error)
