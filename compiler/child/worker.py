"""The jobs that need torch or the user's code. Each takes JSON values and files, and returns JSON values.

A job's exception is told apart by whose code raised it: `UserError` for what the user can mend.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from skerry.clock import SystemClock
from skerry.errors import SkerryError
from skerry.execution.frames import read_frames
from skerry.execution.onnxrt import OnnxrtBackend
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface

from .userload import UserError, build_model, call_user, load_callable, raised_at

_MIN_ROUNDS = 5
OPSET = 20  # the newest that ONNX Runtime 1.23 (Python 3.10's last) and TensorRT 10.3 both read


class Worker:
    """The user's model, once `load` has built it, and the jobs that use it."""

    def __init__(self, root: Path, progress: Callable[[str], None]) -> None:
        self._root, self._progress = root, progress
        self._model = torch.nn.Module()  # until `load`, which always comes first
        self._exported: torch.onnx.ONNXProgram | None = None

    def load(self, *, build: str, weights: str | None, shape: list[int], outputs: list[str]) -> dict[str, Any]:
        """Builds the model, loads its weights, runs it once. Returns its outputs' shapes and its parameter count."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._model = build_model(self._root, build, Path(weights) if weights else None)
        example = torch.zeros(shape)
        found = self._run(example, outputs)
        return {
            "outputs": {name: list(value.shape) for name, value in found.items()},
            "parameters": sum(p.numel() for p in self._model.parameters()),
        }

    def reference(
        self, *, samples: list[list[Any]], preprocess: str | None, interface: str, outputs: list[str], out: str
    ) -> dict[str, Any]:
        """Runs fp32 torch on samples (path, frame number); writes "input/<i>" and "output/<name>/<i>".

        The input comes from the user's own pre-processing if there is one, else from ours.
        """
        view = msgspec.json.decode(Path(interface).read_bytes(), type=Interface)
        ours = Preprocessor(view)
        theirs = load_callable(self._root, preprocess) if preprocess else None
        shape = view.inputs[0].shape
        tensors: dict[str, np.ndarray] = {}
        for index, frame in enumerate(read_frames([(path, number) for path, number in samples])):
            if theirs is not None:
                tensor = np.asarray(call_user(f"{preprocess} on a frame {frame.shape}", theirs, frame), np.float32)
                if list(tensor.shape) != shape and [1, *tensor.shape] != shape:
                    raise UserError(f"{preprocess} returned {list(tensor.shape)}; expected {shape}")
                tensor = np.ascontiguousarray(tensor).reshape(
                    shape
                )  # safetensors would store a transposed view wrongly
            else:
                tensor = np.zeros(shape, np.float32)
                ours(frame, tensor)
            tensors[f"input/{index}"] = tensor
            for name, value in self._run(torch.from_numpy(tensor), outputs).items():
                tensors[f"output/{name}/{index}"] = value.numpy()
            self._progress(f"torch fp32 on frame {index + 1} of {len(samples)}")
        save_file(tensors, out)
        return {"own_preprocessing": theirs is not None}

    def export(self, *, shape: list[int], input_name: str, outputs: list[str], out: str) -> dict[str, Any]:
        """Exports to one ONNX file with names that lead back to torch's layers."""
        program = self._export(shape, input_name, outputs)
        program.save(out)
        return {"opset": OPSET, "ir": int(program.model.ir_version)}

    def layers(
        self, *, shape: list[int], input_name: str, outputs: list[str], tensor: str, names: list[str], out: str
    ) -> dict[str, Any]:
        """Runs torch layer by layer on "input/0" of a file; writes the inner values whose names it was given."""
        program = self._export(shape, input_name, outputs)
        if program.exported_program is None:
            raise RuntimeError("torch kept no exported program to look into")
        recorder = _Recorder(program.exported_program, set(names))
        with torch.no_grad():
            recorder.run_on(torch.from_numpy(load_file(tensor)["input/0"]))
        save_file(recorder.values, out)
        return {}

    def measure(
        self, *, shape: list[int], models: dict[str, str], seconds: float, outputs: list[str]
    ) -> dict[str, Any]:
        """Times torch eager and ONNX files with one thread each, in turn. Milliseconds, one list per model."""
        torch.set_num_threads(1)
        backends = {name: OnnxrtBackend(Path(path), threads=1) for name, path in models.items()}
        example = torch.zeros(shape)
        runs: dict[str, Callable[[], object]] = {"torch": lambda: self._run(example, outputs)}
        runs.update({name: backend.run for name, backend in backends.items()})
        for run in [*runs.values()] * 2:
            run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        clock = SystemClock()
        began = clock.monotonic()
        while len(times["torch"]) < _MIN_ROUNDS or clock.monotonic() - began < seconds:
            for name, run in runs.items():
                started = clock.monotonic()
                run()
                times[name].append((clock.monotonic() - started) * 1e3)
            self._progress(f"timing, round {len(times['torch'])}")
        return {"times_ms": times}

    def _run(self, tensor: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            try:
                result = self._model(tensor)
            except Exception as exc:
                raise UserError(
                    f"the model does not take an input of {'x'.join(map(str, tensor.shape))}: {one_line(exc)} "
                    f"({raised_at(exc)}); give its real size with --input or in the recipe"
                ) from exc
        return _named(result, names)

    def _export(self, shape: list[int], input_name: str, outputs: list[str]) -> torch.onnx.ONNXProgram:
        if self._exported is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    program = torch.onnx.export(
                        self._model,
                        (torch.zeros(shape),),
                        dynamo=True,
                        opset_version=OPSET,
                        input_names=[input_name],
                        output_names=outputs,
                        verbose=False,
                    )
                except Exception as exc:
                    raise UserError(f"torch cannot export the model to ONNX: {export_reason(exc)}") from exc
            if program is None:
                raise RuntimeError("torch's exporter gave nothing back")
            self._exported = program
        return self._exported


class _Recorder(torch.fx.Interpreter):
    """Runs an exported program and keeps the values of the nodes it was asked for."""

    def __init__(self, program: torch.export.ExportedProgram, names: set[str]) -> None:
        super().__init__(program.module())
        self._names = names
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        value = super().run_node(node)
        if node.name in self._names and isinstance(value, torch.Tensor):
            self.values[node.name] = value.detach().contiguous().numpy()
        return value

    def run_on(self, tensor: torch.Tensor) -> None:
        self.run(tensor)


def _named(result: object, names: list[str]) -> dict[str, torch.Tensor]:
    values = (
        list(result.values())
        if isinstance(result, dict)
        else list(result)
        if isinstance(result, (tuple, list))
        else [result]
    )
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not len(tensors) == len(values) == len(names):
        kinds = ", ".join(type(v).__name__ for v in values)
        raise UserError(
            f"the model returns {len(values)} value(s) ({kinds}); the recipe names {len(names)}: {', '.join(names)}"
        )
    return {name: value.detach().contiguous() for name, value in zip(names, tensors, strict=True)}


def one_line(exc: BaseException) -> str:
    """An exception's own words, on one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:300]


def export_reason(exc: BaseException) -> str:
    """What torch's exporter stumbled over, without its pages of guards: the deepest cause."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = str(exc)
    for mark in ("No ONNX function found for", "No decompositions registered for", "Unsupported"):
        if mark in text:
            return text[text.index(mark) :].splitlines()[0][:300]
    return f"{type(exc).__name__}: {one_line(exc)}"


def serve(root: str, answers: int) -> None:
    """Answers jobs, one JSON line each, until standard input ends."""
    with os.fdopen(answers, "w", encoding="utf-8") as out:

        def reply(value: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):  # the parent has gone
                out.write(json.dumps(value) + "\n")
                out.flush()

        worker = Worker(Path(root), lambda text: reply({"progress": text}))
        for line in sys.stdin:
            request = json.loads(line)
            job = request.pop("job")
            try:
                reply(getattr(worker, job)(**request))
            except UserError as exc:
                reply({"error": str(exc), "whose": "user"})
            except SkerryError as exc:
                reply({"error": str(exc), "whose": "skerry"})
            except Exception as exc:  # noqa: BLE001 - whatever it is, the parent is waiting for an answer
                traceback.print_exc()
                reply({"error": f"{job}: {type(exc).__name__}: {one_line(exc)}", "whose": "skerry"})
