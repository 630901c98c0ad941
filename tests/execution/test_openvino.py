"""OpenVINO: what has to be set against its own wish. The laws of every backend: test_backends.py."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from runtimes import Runtime

from skerry.execution.backend import available

if "openvino" not in available():
    pytest.skip("OpenVINO is not installed", allow_module_level=True)

load = Runtime("openvino").load
WATCHED = """
import sys
from pathlib import Path
from skerry.execution.backend import backend_class
backend_class("openvino")(Path(sys.argv[1]), threads=1).run()
print(sorted({"openvino", "openvino_telemetry", "multiprocessing"} & set(sys.modules)))
"""


def test_nothing_is_reported_and_nothing_is_left_in_the_users_home(tmp_path):
    """As it comes, the import alone starts a process that sends, and leaves an id in the home."""
    load(tiny.model(), tmp_path).close()
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", WATCHED, str(tmp_path / "model.onnx")],
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['openvino']"
    assert not list(home.iterdir())


def test_fp32_is_fp32_where_the_cpu_has_bf16(tmp_path):
    """A third in bf16 is off by 1e-3."""
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


def test_what_was_set_is_what_it_has(tmp_path):
    compiled = load(tiny.model(), tmp_path, threads=2)._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
