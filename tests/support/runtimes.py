"""Backends to hold a model against, and small models for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from onnx import helper

from skerry.execution.backend import backend_class


class Runtime:
    """One of the backends."""

    def __init__(self, name):
        self.name, self.at = name, partial(backend_class(name), threads=1)

    def load(self, model, folder, threads=1):
        path = folder / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return self.at(path, threads=threads)


def one_node(op, dtype, shape, out_shape=None, out_dtype=None, **attributes):
    """A model of one node from ``x`` to ``y``."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", out_dtype or dtype, shape if out_shape is None else out_shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def threads_of_this_process():
    return len(list(Path("/proc/self/task").iterdir()))
