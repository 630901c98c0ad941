"""Each case's net as every variant that a bundle may hold it in, and TensorRT's engines of it.

A variant is run as it is held to fp32 in a compilation: ONNX Runtime's own by its kernels, TensorRT's literally, every
Q/DQ pair where it stands and every fp16 value rounded where it is stored.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.ingraph_cases import Case
from benchmarks.results import Row
from benchmarks.side import has_vnni
from compiler.graph.onnxfile import Probe
from compiler.ingraph.suppress import BY_OPERATOR, Suppression
from compiler.ingraph.wrap import Surroundings, surround
from compiler.quantization import calibrate, correct, quantize
from compiler.targets.target import VariantPlan
from compiler.tensorrt import api, lower
from skerry.disk import Disk
from skerry.errors import CompileError
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.processing import Preprocessor
from skerry.manifest import Accelerator, InGraph, Requires

FIXED = Suppression(fixed=True)
BATCHES = (1, 16)
_CORRECTION = 8  # frames
_SMS = ("7.5", "8.6", "12.0")
Values = dict[str, np.ndarray]


class Net:
    """A model on ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = ort.InferenceSession(model.SerializeToString(), session_options(1), providers=[PROVIDER])
        self._names = [output.name for output in self._session.get_outputs()]
        self._entry = self._session.get_inputs()[0].name

    def __call__(self, value: np.ndarray) -> Values:
        return dict(zip(self._names, self._session.run(None, {self._entry: value}), strict=True))


class Literal:
    """A model node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._probe = Probe(model, [output.name for output in model.graph.output], threads=1, literal=True)

    def __call__(self, value: np.ndarray) -> Values:
        return dict(self._probe(value))


@dataclass(frozen=True)
class Way:
    """A variant of a net, and the form of suppression that it gets.

    Attributes:
        precision: TensorRT's; empty for a variant of ONNX Runtime's.
    """

    name: str
    case: Case
    model: onnx.ModelProto
    suppression: Suppression = BY_OPERATOR
    precision: str = ""

    @cached_property
    def drawn(self) -> onnx.ModelProto:
        """With its processing around it."""
        graph = InGraph(frame=self.case.frames[0].shape[:2], answers=True)
        return surround(self.model, self.case.interface, Surroundings(graph, suppression=self.suppression))

    def run(self, model: onnx.ModelProto) -> Net | Literal:
        return Literal(model) if self.precision else Net(model)


def ways(case: Case) -> list[Way]:
    """All of a case's. Its own frames calibrate: processing that equals the runtime's does so whatever the ranges."""
    prepared, tensors = _prepared(case), list(_tensors(case))
    ranges = calibrate.ranges(prepared, tensors, calibrate.DEFAULT, 1, _unheard)
    some, layout = tensors[:_CORRECTION], "u8s8" if has_vnni() else "u8s8-7bit"
    int8 = quantize.laid_out(prepared, ranges, layout=layout)
    correct.correct_biases(int8, prepared, some, 1, _unheard)
    found = [Way("fp32", case, case.model), Way(f"int8 ({layout})", case, int8)]
    if case.detects:
        found.append(Way("fp32, fixed shapes", case, case.model, FIXED))
    for precision in ("fp16", "int8"):
        made, _ = lower.write(lower.Calibrated(prepared, ranges, some), precision, _unheard)
        found.append(Way(f"TensorRT {precision}", case, made, FIXED, precision))
    return found


def engines(way: Way) -> Row:
    """How many of TensorRT for RTX's engines cannot be built, ahead of time, for batches of 1 to 16."""
    if api.version("tensorrt-rtx") is None:
        return Row("engines that were not built", None, "", None, "TensorRT for RTX is not installed")
    layout = {"layout": "explicit"} if way.precision == "int8" else {}
    plan = VariantPlan(id="way", backend="tensorrt-rtx", precision=way.precision, source="here", **layout)
    found = {sm: _engine(way, plan, sm) for sm in _SMS}
    told = "; ".join(f"SM {sm}: {size}" for sm, size in found.items())
    return Row("engines that were not built", sum("MiB" not in size for size in found.values()), "", 0, told)


def _engine(way: Way, plan: VariantPlan, sm: str) -> str:
    """How large one is, or why there is none."""
    requires = Requires(accelerators=[Accelerator(sm=sm, at_least="1", below="2")])
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = lower.lower(way.drawn, Path(folder), plan, requires, _unheard, Disk(), batch=BATCHES)
        except CompileError as exc:
            return str(exc)[:120]
    return f"{made.bytes / 2**20:.1f} MiB" if made else "nothing"


def _prepared(case: Case) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "net.onnx", Path(folder) / "prepared.onnx"
        onnx.save(case.model, source)
        quantize.prepare(source, target)
        return onnx.load(target)


def _tensors(case: Case) -> list[np.ndarray]:
    preprocess, made = Preprocessor(case.interface), []
    for frame in case.frames:
        made.append(np.zeros(case.interface.inputs[0].shape, np.float32))
        preprocess(frame, made[-1])
    return made


def _unheard(_text: str) -> None:
    """Progress that nobody reads."""
