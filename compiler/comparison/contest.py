"""Runs releases side by side in a child process: what they answer and prove, how long they take, what is inside.

A model may crash or eat the memory; a child's end says which one did, and costs the comparison one line. The whole path
runs, as on a device: pre-processing, backend, decoder (skerry.execution). One thread.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import onnx
from onnx import helper
from safetensors import safe_open
from safetensors.numpy import save

from compiler.comparison import common_layers
from compiler.comparison.common_layers import Compared
from compiler.evaluation.accuracy import LEAST_SCORE
from skerry.clock import Clock, SystemClock
from skerry.disk import Disk
from skerry.errors import BackendError, SkerryError
from skerry.execution.backend import Backend, Tensors, load_variant
from skerry.execution.frames import read_frames
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.parity import proof_decoder
from skerry.execution.processing import Decoder, Frame
from skerry.execution.prove import environment, limit_process, measure
from skerry.execution.turns import Timed, Turns
from skerry.manifest import Detection, Manifest, Variant
from skerry.wire import Answer, ProofReport

_LIMIT_S = 3600.0
_MEMORY_MIB = 4096
_WARM_UP = 2
_LEAST_ROUNDS = 6  # fewer cannot hold a median with 95 %
_ROUNDS = 400  # at most; a median's interval is narrow by then


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


class ProveJob(msgspec.Struct, frozen=True, tag="prove"):
    """Does it prove itself here, by its own proof and limits?"""

    entry: Entry


class LayersJob(msgspec.Struct, frozen=True, tag="layers"):
    """How far do the values apart that both graphs know by one name?"""

    a: Entry
    b: Entry
    frames: list[tuple[str, int]]


class Asked(msgspec.Struct, frozen=True):
    """The answers to each frame: at least two labels, or the boxes down to the score that a metric wants."""

    answers: list[list[Answer]]


Job = AskJob | TimeJob | ProveJob | LayersJob
Result = TypeVar("Result", Asked, Timed, ProofReport, Compared)


def run(job: Job, result: type[Result], who: str) -> Result:
    """Does ``job`` in a child.

    Raises:
        BackendError: it did not come back with a result; the message begins with ``who``.
    """
    command = [sys.executable, "-I", "-m", "compiler.comparison.contest"]
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
        self.manifest, variant = _variant(entry)
        self._backend: Backend = load_variant(Path(entry.root), self.manifest, variant, threads=1)
        self._preprocess = make_preprocessor(self.manifest, variant.graph)
        self._decoders = make_reader(self.manifest, variant.graph), proof_decoder(self.manifest, variant.graph)

    def as_on_device(self, frame: Frame) -> None:
        self._run(frame, self._decoders[0], 0.0)

    def ask(self, frame: Frame) -> tuple[Tensors, list[Answer]]:
        """Answers that are unsure too: a proof wants them, and a precision-recall curve."""
        post, slack = self.manifest.postprocess, self.manifest.proof.limits.min_margin
        if isinstance(post, Detection):
            slack = max(slack, post.min_score - LEAST_SCORE)
        return self._run(frame, self._decoders[1], slack)

    def _run(self, frame: Frame, decode: Decoder, slack: float) -> tuple[Tensors, list[Answer]]:
        (tensor,) = self._backend.inputs.values()
        geometry = self._preprocess(frame, tensor)
        outputs = self._backend.run()
        return outputs, decode(outputs, geometry, slack)


def _variant(entry: Entry) -> tuple[Manifest, Variant]:
    manifest = Manifest.parse((Path(entry.root) / "bundle.json").read_bytes())
    return manifest, manifest.variant(entry.variant)


def _frames(where: Sequence[tuple[str, int]]) -> Iterator[Frame]:
    """Photos, frames of videos, or of a proof, which is a file of tensors."""
    for path, group in itertools.groupby(where, key=lambda pair: pair[0]):
        if not path.endswith(".safetensors"):
            yield from read_frames(list(group))
            continue
        with safe_open(path, "np") as proof:
            for _, number in group:
                yield proof.get_tensor(f"frame/{number}")


def _ask(job: AskJob) -> Asked:
    runner, kept, answers = _Runner(job.entry), dict[str, np.ndarray](), []
    names = [tensor.name for tensor in runner.manifest.outputs]
    for index, frame in enumerate(_frames(job.frames)):
        outputs, said = runner.ask(frame)
        answers.append(said)
        if index < job.keep:
            kept |= {f"{name}/{index}": np.array(outputs[name]) for name in names}
    Disk().replace(Path(job.out), save(kept))
    return Asked(answers)


def _time(job: TimeJob, clock: Clock) -> Timed:
    """A round is one frame through every entry; in every other round they run in the opposite order."""
    runners = [_Runner(entry) for entry in job.entries]
    frames = list(_frames(job.frames))
    for runner in runners:
        for frame in frames[:_WARM_UP]:
            runner.as_on_device(frame)
    turns = Turns(len(runners), clock)
    for number in range(_ROUNDS):
        frame = frames[number % len(frames)]
        for index, runner in list(enumerate(runners))[:: -1 if number % 2 else 1]:
            turns.take(index, partial(runner.as_on_device, frame))
        if number + 1 >= _LEAST_ROUNDS and turns.seconds > job.seconds:
            break
    return turns.timed()


def _prove(job: ProveJob, clock: Clock) -> ProofReport:
    manifest, variant = _variant(job.entry)
    return measure(Path(job.entry.root), [variant.id], manifest.proof.limits, 1, clock)[0]


def _layers(job: LayersJob) -> Compared:
    a, b = _graph(job.a), _graph(job.b)
    return common_layers.compare(a, b, list(_tensors(job, a.graph.input[0])))


def _graph(entry: Entry) -> onnx.ModelProto:
    return onnx.load(Path(entry.root) / _variant(entry)[1].model)


def _tensors(job: LayersJob, entry: onnx.ValueInfoProto) -> Iterator[np.ndarray]:
    """What the frames are at the graphs' input, which takes the same in both."""
    manifest, variant = _variant(job.a)
    preprocess = make_preprocessor(manifest, variant.graph)
    kind = entry.type.tensor_type
    shape = [size.dim_value or 1 for size in kind.shape.dim]
    for frame in _frames(job.frames):
        tensor = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        preprocess(frame, tensor)
        yield tensor


def _do(job: Job, clock: Clock) -> Asked | Timed | ProofReport | Compared:
    if isinstance(job, AskJob):
        return _ask(job)
    if isinstance(job, TimeJob):
        return _time(job, clock)
    return _prove(job, clock) if isinstance(job, ProveJob) else _layers(job)


def main() -> int:
    """The child: a job on standard input, its result on standard output."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    limit_process(_MEMORY_MIB)
    try:
        result = _do(job, SystemClock())
    except (SkerryError, MemoryError) as exc:
        sys.stderr.write(f"{exc or type(exc).__name__}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
