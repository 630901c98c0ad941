"""OpenVINO on the CPU: the same ONNX files on another runtime, for nets that it runs faster. Extra ``[openvino]``.

Chosen against its defaults: fp32 arithmetic (where a CPU has bf16 it would compute in that and say nothing, and it may
quantize products as they come), one stream and an explicit thread count (it takes every core), threads that may move
(it would bind those of every model to the same core), inputs and outputs bound once to buffers of ours, no report of
usage. A compiled model is kept nowhere: OpenVINO's cache on disk stays off, as it comes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.errors import BackendError
from skerry.execution.backend import BackendFacts, Tensors

_REPORTER = "openvino_telemetry"


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Imports of OpenVINO without ``openvino_telemetry``, which it then does without.

    With it, the import alone starts a process that reports to Google Analytics, and keeps an id in the user's home
    (seen in OpenVINO 2026.4.1: openvino/tools/ovc/__init__.py). There is no option for it.
    """
    before = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # type: ignore[assignment] # Python's own way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules[_REPORTER]
        if before is not None:
            sys.modules[_REPORTER] = before


with _unreported():
    import openvino as ov
    from openvino.frontend import FrontEndManager

DEVICE = "CPU"

# How ONNX Runtime marks weights that lie in its own process: their offset is an address.
_IN_MEMORY = b"_ORT_MEM_ADDR_"
_PREAMBLE = ("Exception from", "Check ", "FrontEnd API failed")
_TOLD = ("layerType", "originalLayersNames", "runtimePrecision")  # of a node of the runtime model
_MOVES = {"Const", "Convert", "Input", "Output", "Reorder"}  # these compute nothing
_DTYPES = {"f32": np.float32, "u8": np.uint8, "i64": np.int64}


class OpenvinoBackend:
    """One ONNX file on OpenVINO's CPU plugin. See `skerry.execution.backend` for the laws."""

    def __init__(self, model: Path, *, threads: int) -> None:
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            reader = FrontEndManager().load_by_framework("onnx")  # left alone it guesses among seven formats
            _check_weights(model)
            graph = _for_one_image(reader.convert(reader.load(str(model))))
            self._compiled = ov.Core().compile_model(graph, DEVICE, options)
            self._request = self._compiled.create_infer_request()
            found = self._compiled.get_property("EXECUTION_DEVICES")
            precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            self._threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        except Exception as exc:
            raise BackendError(f"{model.name} does not load: {_reason(exc)}") from exc
        if found != [DEVICE] or precision != "f32":
            raise BackendError(f"{model.name}: asked OpenVINO for {DEVICE} in f32, it loaded {found} in {precision}")
        if not self._compiled.outputs:  # an empty file is an empty model to it
            raise BackendError(f"{model.name} computes nothing; expected a model with outputs")
        self.inputs: Tensors = {
            port.any_name: self._bind_input(index, port, model) for index, port in enumerate(self._compiled.inputs)
        }
        self._names = [port.any_name for port in self._compiled.outputs]
        self._fixed = {
            port.any_name: self._bind_output(index, port, model)
            for index, port in enumerate(self._compiled.outputs)
            if _kind(port) in _DTYPES and _is_fixed(port)
        }

    def _bind_input(self, index: int, port: Any, model: Path) -> NDArray[np.generic]:
        if _kind(port) not in _DTYPES or not _is_fixed(port):
            found = f"input {port.any_name} is {_kind(port)} {port.partial_shape}"
            raise BackendError(f"{model.name}: {found}; expected a fixed-size tensor")
        buffer = _zeros(port, model)
        self._request.set_input_tensor(index, ov.Tensor(buffer, shared_memory=True))
        return buffer

    def _bind_output(self, index: int, port: Any, model: Path) -> NDArray[np.generic]:
        buffer = _zeros(port, model)
        self._request.set_output_tensor(index, ov.Tensor(buffer, shared_memory=True))
        return buffer

    def run(self) -> Tensors:
        try:
            self._request.infer()
            return {
                name: self._fixed[name] if name in self._fixed else self._request.get_output_tensor(index).data
                for index, name in enumerate(self._names)
            }
        except Exception as exc:
            raise BackendError(f"the model does not run: {_reason(exc)}") from exc

    def facts(self) -> BackendFacts:
        return BackendFacts("openvino", DEVICE, str(ov.__version__), self._threads)

    def kernels(self) -> list[tuple[list[str], str]]:
        """What was built: the names of the nodes and values that each kernel stands for, and its precision, "u8"."""
        infos = [op.get_rt_info() for op in self._compiled.get_runtime_model().get_ordered_ops()]
        told = [{key: str(info[key].value) for key in _TOLD} for info in infos]
        return [
            (one["originalLayersNames"].split(","), one["runtimePrecision"])
            for one in told
            if one["layerType"] not in _MOVES
        ]

    def close(self) -> None:
        """Frees the model's memory; the instance is of no use afterwards."""
        del self._request, self._compiled


def _check_weights(model: Path) -> None:
    """Raises `ValueError` for weights at an address: OpenVINO would read there, wherever it points."""
    if _IN_MEMORY in model.read_bytes():
        raise ValueError("its weights are said to lie in memory; expected them in a file")


def _for_one_image(graph: Any) -> Any:
    """A graph that takes a batch takes one image here. Its reader drops the axes' names: an open first axis it is."""
    shapes = {index: port.partial_shape for index, port in enumerate(graph.inputs)}
    batched = {
        index: [1, *(axis.get_length() for axis in list(shape)[1:])]
        for index, shape in shapes.items()
        if shape.rank.is_static and [axis.is_static for axis in shape] == [False] + [True] * (len(shape) - 1)
    }
    if batched:
        graph.reshape(batched)
    return graph


def _kind(port: Any) -> str:
    return str(port.element_type.get_type_name())


def _is_fixed(port: Any) -> bool:
    return bool(port.partial_shape.is_static) and 0 not in port.shape


def _zeros(port: Any, model: Path) -> NDArray[np.generic]:
    try:
        return np.zeros(tuple(port.shape), _DTYPES[_kind(port)])
    except (MemoryError, ValueError) as exc:
        raise BackendError(f"{model.name}: {port.any_name} {port.shape} does not fit into memory: {exc}") from exc


def _reason(exc: Exception) -> str:
    """OpenVINO says first where in its code, then what."""
    lines = [line.strip() for line in str(exc).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_PREAMBLE)]
    return (" ".join(telling) or type(exc).__name__)[:300]
