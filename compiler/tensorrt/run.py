"""Runs an engine on a GPU, thin: for tests and measurements on a build machine, over cuda-python.

Nothing here has run without a GPU, and none of it is what a device runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skerry.errors import CompileError

Arrays = Mapping[str, NDArray[np.generic]]


def compute_capability() -> str:
    """The first GPU's, "8.7".

    Raises:
        CompileError: cuda-python is not installed, or there is no GPU that its driver knows.
    """
    cuda = _cuda()
    major = _call(cuda.cudaDeviceGetAttribute, cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, 0)
    minor = _call(cuda.cudaDeviceGetAttribute, cuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor, 0)
    return f"{major}.{minor}"


def _cuda() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as exc:
        raise CompileError(f"running an engine needs cuda-python ({exc}): pip install cuda-python") from exc


def _call(function: Any, *arguments: Any) -> Any:
    """Calls CUDA and returns what comes after its error code."""
    code, *values = function(*arguments)
    if int(code):
        raise CompileError(f"{function.__name__}: {code.name}; `nvidia-smi` says whether there is a GPU and a driver")
    return values[0] if len(values) == 1 else values


class Engine:
    """A deserialized engine with buffers on the GPU. Use as a context manager: leaving it frees them.

    Raises:
        CompileError: the engine does not load here.
    """

    def __init__(self, trt: Any, plan: bytes) -> None:
        self._trt, self._cuda = trt, _cuda()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise CompileError("the engine does not load here: it is of another TensorRT, GPU or system; build it anew")
        self._context = self.engine.create_execution_context()
        self._stream = _call(self._cuda.cudaStreamCreate)
        self._buffers: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for address, _ in self._buffers.values():
            _call(self._cuda.cudaFree, address)
        _call(self._cuda.cudaStreamDestroy, self._stream)
        del self._context, self.engine, self._runtime

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Runs once: copies in, executes, copies out, waits."""
        kind = self._cuda.cudaMemcpyKind
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        entries = [name for name in names if self.engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        for name in entries:
            value = np.ascontiguousarray(inputs[name])
            self._context.set_input_shape(name, value.shape)
            self._copy(self._address(name, value.nbytes), value.ctypes.data, value.nbytes, kind.cudaMemcpyHostToDevice)
        results = {}
        for name in names:
            if name not in entries:
                shape = tuple(self._context.get_tensor_shape(name))
                results[name] = np.empty(shape, self._trt.nptype(self.engine.get_tensor_dtype(name)))
                self._address(name, results[name].nbytes)
        if not self._context.execute_async_v3(int(self._stream)):
            raise CompileError("the engine did not run; what TensorRT logged above says why")
        for name, value in results.items():
            self._copy(value.ctypes.data, self._buffers[name][0], value.nbytes, kind.cudaMemcpyDeviceToHost)
        _call(self._cuda.cudaStreamSynchronize, self._stream)
        return results

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        _call(self._cuda.cudaMemcpyAsync, target, source, size, kind, self._stream)

    def _address(self, name: str, size: int) -> int:
        """A buffer on the GPU of at least ``size`` bytes, told to TensorRT."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if address:
                _call(self._cuda.cudaFree, address)
            address = _call(self._cuda.cudaMalloc, max(size, 1))
            self._buffers[name] = (address, size)
        self._context.set_tensor_address(name, int(address))
        return address
