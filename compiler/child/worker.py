"""The jobs that need torch or the user's code. Each takes JSON values and files, and returns JSON values.

A job's exception is told apart by whose code raised it: `UserError` for what the user can mend.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from skerry.manifest import Interface

from . import batches, program, serving
from .export import OPSET, export_reason, to_onnx
from .prune_files import pruned_into, restored, train_into
from .reference import reference_job
from .serving import one_line
from .timing import runs_of, take_turns
from .train import Training
from .usercode import UserError, raised_at
from .userload import build_model


class Worker:
    """The user's model, once `load` has built it, and the jobs that use it."""

    def __init__(self, root: Path, progress: Callable[[str], None]) -> None:
        self._root, self._progress = root, progress
        self._model = torch.nn.Module()  # until `load`, which always comes first
        self._exported: torch.onnx.ONNXProgram | None = None

    def load(
        self, *, build: str, weights: str | None, shape: list[int], outputs: list[str], pt2: str | None = None
    ) -> dict[str, Any]:
        """Builds the model, loads its weights, runs it once. Returns its outputs' shapes and its parameter count."""
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._model = _load_program(Path(pt2)) if pt2 else build_model(self._root, build, _path(weights))
        found = self._run(torch.zeros(shape), outputs)
        self._check_repeats(torch.rand(shape), outputs)
        return {
            "outputs": {name: list(value.shape) for name, value in found.items()},
            "parameters": sum(p.numel() for p in self._model.parameters()),
        }

    def reference(self, *, outputs: list[str], **request: Any) -> dict[str, Any]:
        """Runs fp32 torch on samples (path, frame number); writes "input/<i>" and "output/<name>/<i>".

        The input comes from the user's own pre-processing if there is one, else from ours.
        """

        def run(tensor: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
            return {name: value.numpy() for name, value in self._run(torch.from_numpy(tensor), outputs).items()}

        return reference_job(self._root, run, self._progress, request)

    def export(
        self, *, shape: list[int], input_name: str, outputs: list[str], out: str, batch: list[int] | None = None
    ) -> dict[str, Any]:
        """Exports to one ONNX file with names that lead back to torch's layers.

        With ``batch`` the file takes so many images, from and to, at once, and is compared with torch at three sizes.
        """
        exported = self._export(shape, input_name, outputs, batch)
        exported.save(out)
        if batch:
            batches.check(Path(out), shape, batch, lambda image: self._run(image, outputs))
        return {"opset": OPSET, "ir": int(exported.model.ir_version)}

    def prune(self, *, ratio: float, round_to: int, keep: list[str], graph: dict[str, Any], out: str) -> dict[str, Any]:
        """Prunes and exports: "pruning.json", "weights.safetensors", "model.onnx".

        ``graph`` holds the arguments of `export`, but for its file.
        """
        example = torch.zeros(graph["shape"])
        facts = pruned_into(Path(out), self._model, example, ratio=ratio, round_to=round_to, keep=keep)
        return facts if "nothing" in facts else facts | self._export_pruned(out, graph)

    def fine_tune(
        self, *, pruned: str, graph: dict[str, Any], training: dict[str, Any], interface: str, out: str
    ) -> dict[str, Any]:
        """Trains what `prune` left in the folder ``pruned``, and exports: the same three files."""
        how = msgspec.convert(training, Training)
        view = msgspec.json.decode(Path(interface).read_bytes(), type=Interface)
        trained = train_into(Path(out), Path(pruned), self._model, view, how, self._progress)
        return {"training": msgspec.to_builtins(trained)} | self._export_pruned(out, graph)

    def adopt(self, *, folder: str, shape: list[int], batch: list[int] | None = None) -> dict[str, Any]:
        """Goes on with a net that `prune` or `fine_tune` has left: what follows runs, times and looks into that one."""
        example = torch.zeros([2, *shape[1:]] if batch else shape)
        self._model = restored(Path(folder), self._model, example, dynamic_batch=batch is not None)
        self._exported = None
        return {}

    def _export_pruned(self, folder: str, graph: dict[str, Any]) -> dict[str, Any]:
        """Exports what lies in ``folder``, and goes on with the whole net."""
        whole, before = self._model, self._exported
        try:
            self.adopt(folder=folder, shape=graph["shape"], batch=graph.get("batch"))
            return self.export(**graph, out=str(Path(folder) / "model.onnx"))
        finally:
            self._model, self._exported = whole, before

    def layers(
        self,
        *,
        shape: list[int],
        input_name: str,
        outputs: list[str],
        tensor: str,
        names: list[str],
        out: str,
        batch: list[int] | None = None,
    ) -> dict[str, Any]:
        """Runs torch layer by layer on "input/0" of a file; writes the inner values whose names it was given."""
        exported = self._export(shape, input_name, outputs, batch)
        if exported.exported_program is None:
            raise RuntimeError("torch kept no exported program to look into")
        recorder = _Recorder(exported.exported_program, set(names))
        with torch.no_grad():
            recorder.run_on(torch.from_numpy(load_file(tensor)["input/0"]))
        save_file(recorder.values, out)
        return {}

    def measure(
        self,
        *,
        shape: list[int],
        models: dict[str, str],
        seconds: float,
        outputs: list[str],
        backends: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Times torch eager and ONNX files with one thread each, in turn. As `take_turns`.

        ``backends`` says what runs those that ONNX Runtime does not.
        """
        torch.set_num_threads(1)
        example = torch.zeros(shape)
        runs: dict[str, Callable[[], object]] = {"torch": lambda: self._run(example, outputs)}
        runs.update(runs_of(models, backends or {}))
        return take_turns(runs, seconds, self._progress)

    def _run(self, tensor: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            try:
                result = self._model(tensor)
            except Exception as exc:
                raise UserError(
                    f"the model does not take an input of {'x'.join(map(str, tensor.shape))}: {type(exc).__name__}: "
                    f"{one_line(exc)} ({raised_at(exc)}); if its size is another, give it with --input or in the recipe"
                ) from exc
        return _named(result, names)

    def _check_repeats(self, tensor: torch.Tensor, names: list[str]) -> None:
        """Refuses a model that answers twice differently: nothing that is held to it could be right."""
        once, twice = self._run(tensor, names), self._run(tensor, names)
        for name, value in once.items():
            if not torch.allclose(value, twice[name], rtol=1e-4, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"the model gives two answers to one input ({name} differs): something in it is random, such as "
                    "F.dropout without training=self.training; expected a model that repeats itself after eval()"
                )

    def _export(
        self, shape: list[int], input_name: str, outputs: list[str], batch: list[int] | None
    ) -> torch.onnx.ONNXProgram:
        if self._exported is None:
            self._exported = to_onnx(self._model, shape, input_name, outputs, batch)
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
    keys = list(map(str, result)) if isinstance(result, dict) else []
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
        called = f", called {', '.join(keys)}" if keys else ""
        raise UserError(
            f"the model returns {len(values)} value(s) ({kinds}){called}; the recipe names {len(names)}: "
            f"{', '.join(names)}; name each in its order with model.outputs in a recipe.toml, or return tensors alone"
        )
    if set(keys) == set(names) and keys != names:
        raise UserError(f"the model returns {', '.join(keys)}, in this order; the recipe's model.outputs has another")
    return {name: value.detach().contiguous() for name, value in zip(names, tensors, strict=True)}


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _load_program(path: Path) -> torch.nn.Module:
    """A ``.pt2`` file as a module: what is loaded is a copy that holds tensors and operators alone."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "program.pt2"
        program.clean(path, plain)
        try:
            return torch.export.load(plain).module()
        except Exception as exc:  # torch's reader trusts what it reads
            raise UserError(f"{path.name} cannot be loaded: {export_reason(exc)}") from exc


def serve(root: str, answers: int) -> None:
    """Answers jobs on the user's model."""
    serving.serve(answers, lambda progress: Worker(Path(root), progress))
