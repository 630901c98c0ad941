"""Runs releases side by side in a child process: what they answer, how long they take, what their layers hold.

A model may crash or eat the memory; a child's end says which one did, and costs the comparison one line. The whole path
runs, as on a device: pre-processing, backend, decoder (skerry.execution). One thread.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import onnx
from safetensors.numpy import save

from compiler.layers import behind_pairs, requested, sqnr, value_shapes
from compiler.onnxfile import float_values
from skerry.clock import Clock, SystemClock
from skerry.disk import Disk
from skerry.errors import BackendError, SkerryError
from skerry.execution.backend import Backend, Tensors, load_variant
from skerry.execution.frames import read_frames
from skerry.execution.parity import proof_decoder
from skerry.execution.processing import Frame, Preprocessor
from skerry.execution.prove import environment, limit_process
from skerry.manifest import Manifest
from skerry.wire import Answer

_LIMIT_S = 3600.0
_MEMORY_MIB = 4096
_WARM_UP = 2
_ROUNDS = 40  # at most; a median's interval is narrow by then


class Entry(msgspec.Struct, frozen=True):
    """One variant of a release that lies unpacked in ``root``."""

    root: str
    variant: str


class AskJob(msgspec.Struct, frozen=True, tag="ask"):
    """What does it answer? The outputs of the first ``keep`` frames go to the file ``out``."""

    entry: Entry
    frames: list[tuple[str, int]]
    keep: int
    out: str


class TimeJob(msgspec.Struct, frozen=True, tag="time"):
    """How long do they take, in turns, for about so many seconds?"""

    entries: list[Entry]
    frames: list[tuple[str, int]]
    seconds: float


class LayersJob(msgspec.Struct, frozen=True, tag="layers"):
    """How far do the values apart that both graphs know by one name?"""

    a: Entry
    b: Entry
    frames: list[tuple[str, int]]


class Asked(msgspec.Struct, frozen=True):
    """The answers to each frame, at least two labels of each, without a threshold."""

    answers: list[list[Answer]]
    outputs: list[str]


class Timed(msgspec.Struct, frozen=True):
    """Milliseconds of each round, by entry."""

    times_ms: list[list[float]]


class Value(msgspec.Struct, frozen=True):
    """One value that two graphs share: what computes it there, in which precision, and how far apart it is."""

    name: str
    kind: str
    precision_a: str
    precision_b: str
    sqnr_db: float


class Compared(msgspec.Struct, frozen=True):
    """The shared values in the graph's order; ``known_a`` and ``known_b`` are how many each graph has."""

    values: list[Value]
    known_a: int
    known_b: int


Job = AskJob | TimeJob | LayersJob
Result = TypeVar("Result", Asked, Timed, Compared)


def run(job: Job, result: type[Result], who: str) -> Result:
    """Does ``job`` in a child.

    Raises:
        BackendError: it did not come back with a result; the message begins with ``who``.
    """
    command = [sys.executable, "-I", "-m", "compiler.contest"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=_LIMIT_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise BackendError(f"{who}: it did not end within {_LIMIT_S:.0f} s") from exc
    if done.returncode != 0:
        raise BackendError(f"{who}: {_epitaph(done.returncode, done.stderr)}")
    return msgspec.json.decode(done.stdout, type=result)


def _epitaph(code: int, stderr: bytes) -> str:
    if code < 0:
        names = {s.value: s.name for s in signal.Signals}
        return f"the model crashed ({names.get(-code, f'signal {-code}')})"
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return last[0][:300] if last else f"exit code {code}"


# --- the child -----------------------------------------------------------------------------------------------------


class _Runner:
    """A variant that is loaded: a frame in, outputs and answers out."""

    def __init__(self, entry: Entry) -> None:
        self._manifest, self._backend = _load(entry)
        self._preprocess, self._decode = Preprocessor(self._manifest), proof_decoder(self._manifest)
        self.outputs = [tensor.name for tensor in self._manifest.outputs]

    def __call__(self, frame: Frame) -> tuple[Tensors, list[Answer]]:
        (tensor,) = self._backend.inputs.values()
        geometry = self._preprocess(frame, tensor)
        outputs = self._backend.run()
        return outputs, self._decode(outputs, geometry, self._manifest.proof.limits.min_margin)


def _load(entry: Entry) -> tuple[Manifest, Backend]:
    manifest = Manifest.parse((Path(entry.root) / "bundle.json").read_bytes())
    variant = manifest.variant(entry.variant)
    return manifest, load_variant(Path(entry.root), manifest, variant, threads=1)


def _ask(job: AskJob) -> Asked:
    runner, kept, answers = _Runner(job.entry), dict[str, np.ndarray](), []
    for index, frame in enumerate(read_frames(job.frames)):
        outputs, said = runner(frame)
        answers.append(said)
        if index < job.keep:
            kept |= {f"{name}/{index}": np.array(outputs[name]) for name in runner.outputs}
    Disk().replace(Path(job.out), save(kept))
    return Asked(answers, runner.outputs)


def _time(job: TimeJob, clock: Clock) -> Timed:
    """Every entry on every frame once a round; a round's time is the mean over its frames."""
    runners = [_Runner(entry) for entry in job.entries]
    frames = list(read_frames(job.frames))
    times: list[list[float]] = [[] for _ in runners]
    until = clock.monotonic() + job.seconds
    for turn in range(_WARM_UP + _ROUNDS):
        for runner, taken in zip(runners, times, strict=True):
            started = clock.monotonic()
            for frame in frames:
                runner(frame)
            if turn >= _WARM_UP:
                taken.append((clock.monotonic() - started) * 1e3 / len(frames))
        if turn >= _WARM_UP + 2 and clock.monotonic() > until:
            break
    return Timed(times)


def _layers(job: LayersJob) -> Compared:
    a, b = _graph(job.a), _graph(job.b)
    here, there = _values(a), _values(b)
    shapes_a, shapes_b = value_shapes(a), value_shapes(b)
    common = [v for v in here if v in there and shapes_a.get(v) == shapes_b.get(v)]
    behind_a, behind_b = behind_pairs(a), behind_pairs(b)
    pairs = {behind_a.get(v, v): behind_b.get(v, v) for v in common}
    apart = sqnr(a, b, pairs, list(_tensors(job)))
    asked_a, asked_b = requested(a), requested(b)
    values = [
        Value(v, here[v].op_type, asked_a[here[v].output[0]], asked_b[there[v].output[0]], apart[behind_a.get(v, v)])
        for v in common
    ]
    return Compared(values, len(here), len(there))


def _graph(entry: Entry) -> onnx.ModelProto:
    manifest = Manifest.parse((Path(entry.root) / "bundle.json").read_bytes())
    return onnx.load(Path(entry.root) / manifest.variant(entry.variant).model)


def _values(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The float values that a layer computes, and which node that is; Q/DQ pairs only hand them on."""
    floats = set(float_values(model))
    nodes = [n for n in model.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    found = {value: node for node in nodes for value in node.output if value in floats}
    makers = {value: node for node in nodes for value in node.output}
    for node in model.graph.node:  # an output behind its pair: the layer that it is of lies before the pair
        if node.op_type == "DequantizeLinear" and node.output[0] in {o.name for o in model.graph.output}:
            before = next((n.input[0] for n in model.graph.node if node.input[0] in n.output), "")
            if before in makers:
                found[node.output[0]] = makers[before]
    return found


def _tensors(job: LayersJob) -> Iterator[np.ndarray]:
    manifest = Manifest.parse((Path(job.a.root) / "bundle.json").read_bytes())
    preprocess, entry = Preprocessor(manifest), manifest.inputs[0]
    for frame in read_frames(job.frames):
        tensor = np.zeros(entry.shape, entry.dtype)
        preprocess(frame, tensor)
        yield tensor


def main() -> int:
    """The child: a job on standard input, its result on standard output."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    limit_process(_MEMORY_MIB)
    try:
        if isinstance(job, AskJob):
            result: Asked | Timed | Compared = _ask(job)
        else:
            result = _time(job, SystemClock()) if isinstance(job, TimeJob) else _layers(job)
    except (SkerryError, MemoryError) as exc:
        sys.stderr.write(f"{exc or type(exc).__name__}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
