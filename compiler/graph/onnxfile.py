"""ONNX files: reading, running all of a graph's values, and the one layout that we ship.

The shipped layout is a small graph without a trace of the machine it was made on, and one file of weights: tensors
sorted by name, each at a multiple of 4 KiB, so that a device maps them and an update moves only those that changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

from compiler.graph.rounding import rounded
from skerry.disk import Disk
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.manifest import Weight

GRAPH, WEIGHTS = "model.onnx", "weights.bin"
_ALIGN = 4096
_INLINE = 1024  # smaller tensors (scales, shapes, biases) stay in the graph


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without notes: paths, stack traces, tool versions and shapes of inner values."""
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    for name in ("metadata_props", "functions", "training_info"):
        cleaned.ClearField(name)
    cleaned.producer_name, cleaned.producer_version, cleaned.doc_string, cleaned.domain = "skerry", "", "", ""
    graph = cleaned.graph
    graph.name, graph.doc_string = "model", ""
    for field in ("value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    for item in [*graph.node, *graph.input, *graph.output, *graph.initializer]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return cleaned


def write(model: onnx.ModelProto, folder: Path, disk: Disk, prefix: str) -> list[Weight]:
    """Writes ``model`` in the shipped layout; ``prefix`` is the folder's path inside the bundle.

    Returns:
        Where each large tensor lies, with its digest.
    """
    model = clean(model)
    weights, blob = [], bytearray()
    large = [t for t in model.graph.initializer if _size(t) >= _INLINE]
    for tensor in sorted(large, key=lambda t: t.name):
        data = np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()
        blob += bytes(-len(blob) % _ALIGN)
        weights.append(
            Weight(tensor.name, f"{prefix}/{WEIGHTS}", len(blob), len(data), hashlib.sha256(data).hexdigest())
        )
        tensor.raw_data = data
        external_data_helper.set_external_data(tensor, WEIGHTS, offset=len(blob), length=len(data))
        tensor.ClearField("raw_data")
        blob += data
    disk.replace(folder / GRAPH, model.SerializeToString(deterministic=True))
    if weights:
        disk.replace(folder / WEIGHTS, bytes(blob))
    return weights


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """The initializers as arrays."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def float_values(model: onnx.ModelProto) -> list[str]:
    """The names of the float values that nodes compute, in the graph's order. Needs inferred shapes."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    names = [name for node in model.graph.node for name in node.output]
    return [name for name in names if kinds.get(name) == onnx.TensorProto.FLOAT]


class Probe:
    """Runs a model and gives back any of its inner values, besides its outputs."""

    def __init__(self, model: onnx.ModelProto, values: list[str], *, threads: int, literal: bool = False) -> None:
        """``literal`` runs every node as it stands: no fusion, and what is int8 or half rounds exactly where it is."""
        probed = onnx.ModelProto()
        probed.CopyFrom(rounded(model) if literal else model)
        there = {output.name for output in probed.graph.output}
        probed.graph.output.extend(helper.make_empty_tensor_value_info(v) for v in values if v not in there)
        options = session_options(threads)
        if literal:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(probed.SerializeToString(), options, providers=[PROVIDER])
        self.inputs = [arg.name for arg in self._session.get_inputs()]
        self.values = values

    def __call__(self, tensor: NDArray[np.generic]) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Pairs of name and value, in the order asked for, of a model with one input."""
        return self.run({self.inputs[0]: tensor})

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """The same, of a model with any inputs."""
        return zip(self.values, self._session.run(self.values, dict(inputs)), strict=True)
