"""ONNX Runtime: what it alone can tell or refuse. The laws of every backend: test_backends.py."""

from __future__ import annotations

import gc

import onnxruntime
import pytest
import tiny
from onnx import TensorProto, helper
from runtimes import Runtime, one_node, threads_of_this_process

from skerry.errors import BackendError
from skerry.execution.backend import BackendFacts

load = Runtime("onnxrt").load


def test_an_output_of_another_size_than_the_model_says_is_refused_when_it_runs(tmp_path):
    model = one_node("NonZero", TensorProto.FLOAT, [2, 3], out_shape=[2, 6], out_dtype=TensorProto.INT64)
    backend = load(model, tmp_path)
    backend.inputs["x"][...] = 1
    assert backend.run()["y"].shape == (2, 6)
    backend.inputs["x"][0, 0] = 0
    with pytest.raises(BackendError, match="does not run"):
        backend.run()


def test_an_open_axis_that_is_no_batch_is_refused(tmp_path):
    with pytest.raises(BackendError, match="input x"):
        load(one_node("Identity", TensorProto.FLOAT, ["n", 3, 8, 8]), tmp_path)


def test_a_model_that_fails_in_a_run_says_so_in_one_line(tmp_path):
    model = one_node("Reshape", TensorProto.FLOAT, [6], out_shape=[2, "half"])
    model.graph.node[0].input.append("shape")
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["shape"], to=TensorProto.INT64))
    backend = load(model, tmp_path)
    backend.inputs["x"][...] = 5
    with pytest.raises(BackendError) as error:
        backend.run()
    message = str(error.value)
    assert message.startswith("the model does not run: ")
    assert "\n" not in message


def test_the_facts_are_those_of_the_session_that_loaded(tmp_path):
    backend = load(tiny.model(), tmp_path, threads=2)
    assert backend.facts() == BackendFacts("onnxrt", "CPUExecutionProvider", onnxruntime.__version__, threads=2)
    assert backend._session.get_providers() == [backend.facts().provider]
    assert backend._session.get_session_options().intra_op_num_threads == backend.facts().threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_sessions_keep_to_the_threads_that_they_were_given(tmp_path, threads):
    gc.collect()
    before = threads_of_this_process()
    sessions = [load(tiny.model(), tmp_path, threads=threads) for _ in range(2)]
    for session in sessions:
        session.run()
    assert threads_of_this_process() == before + 2 * (threads - 1)  # the caller is one of them
    for session in sessions:
        session.close()
    assert threads_of_this_process() == before
