"""ONNX Runtime on the CPU.

Chosen against its defaults, each for a reason that was measured (onnxruntime issues #10270, #26847; rf-detr #1456):
spinning off, since idle worker threads that spin steal the cores that decode the next frame; an explicit thread count,
since the default takes every core for every model; inputs and outputs bound once to buffers of ours; no layer
quantized that the file leaves in float (docs/decisions/0018).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from skerry.errors import BackendError
from skerry.execution.backend import BackendFacts, Tensors

PROVIDER = "CPUExecutionProvider"
BATCH = "batch"  # what a graph calls its first axis if it takes more than one image at a time; here it takes one

_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
# Puts the float weights of a layer between two grids into int8, one scale for all channels (onnxruntime pull requests
# 24537, 25673). Such a layer is in float because int8 costs too much there, and this costs more: docs/decisions/0018.
_UNASKED = "WeightBiasQuantization"
_SILENT = 4  # fatal only: what fails comes back as an exception with the same text


def session_options(threads: int) -> ort.SessionOptions:
    """The options that every session of Skerry has, on the device and on the build machine."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("optimization.disable_specified_optimizers", _UNASKED)
    return options


class OnnxrtBackend:
    """One ONNX file on ONNX Runtime's CPU provider. See `skerry.execution.backend` for the laws."""

    def __init__(self, model: Path, *, threads: int) -> None:
        options = session_options(threads)
        options.add_free_dimension_override_by_name(BATCH, 1)
        try:
            self._session = ort.InferenceSession(model, options, providers=[PROVIDER])
        except Exception as exc:
            raise BackendError(f"{model.name} does not load: {_first_line(exc)}") from exc
        loaded = self._session.get_providers()
        if loaded != [PROVIDER]:
            raise BackendError(f"{model.name}: asked ONNX Runtime for {PROVIDER}, it loaded {loaded}")
        self._threads = threads
        self._binding = self._session.io_binding()
        self.inputs: Tensors = {arg.name: self._bind_input(arg, model) for arg in self._session.get_inputs()}
        self._fixed = {
            arg.name: self._bind_output(arg, model)
            for arg in self._session.get_outputs()
            if arg.type in _DTYPES and _is_fixed(arg.shape)
        }
        self._names = [arg.name for arg in self._session.get_outputs()]
        self._varying = [name for name in self._names if name not in self._fixed]

    def _bind_input(self, arg: Any, model: Path) -> NDArray[np.generic]:
        if arg.type not in _DTYPES or not _is_fixed(arg.shape):
            raise BackendError(
                f"{model.name}: input {arg.name} is {arg.type} {arg.shape}; expected a fixed-size tensor"
            )
        buffer = _zeros(arg, model)
        self._binding.bind_ortvalue_input(arg.name, ort.OrtValue.ortvalue_from_numpy(buffer))
        return buffer

    def _bind_output(self, arg: Any, model: Path) -> NDArray[np.generic]:
        buffer = _zeros(arg, model)
        self._binding.bind_ortvalue_output(arg.name, ort.OrtValue.ortvalue_from_numpy(buffer))
        return buffer

    def run(self) -> Tensors:
        try:
            for name in self._varying:  # a run leaves its own buffer bound, which fits only the same size again
                self._binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(self._binding)
            if not self._varying:
                return self._fixed
            bound = dict(zip([*self._fixed, *self._varying], self._binding.get_outputs(), strict=True))
            return {name: self._fixed[name] if name in self._fixed else bound[name].numpy() for name in self._names}
        except Exception as exc:
            raise BackendError(f"the model does not run: {_first_line(exc)}") from exc

    def facts(self) -> BackendFacts:
        return BackendFacts("onnxrt", PROVIDER, str(ort.__version__), self._threads)

    def close(self) -> None:
        """Frees the session's memory; the instance is of no use afterwards."""
        del self._binding, self._session


def _zeros(arg: Any, model: Path) -> NDArray[np.generic]:
    try:
        return np.zeros(arg.shape, _DTYPES[arg.type])
    except (MemoryError, ValueError) as exc:
        raise BackendError(f"{model.name}: {arg.name} {arg.shape} does not fit into memory: {exc}") from exc


def _is_fixed(shape: list[Any]) -> bool:
    return all(isinstance(dim, int) and dim > 0 for dim in shape)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n")[0][:300]
