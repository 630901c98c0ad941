"""The proof: a release runs its own frames on this machine and is held to the fp32 reference.

The whole path runs (resize, colour, normalise, infer, decode), so swapped channels, a wrong mean or shuffled labels
fail it as surely as broken weights. It runs in a child process with limits of memory and time, at low priority: a model
that crashes, hangs or eats the memory costs the model in service nothing.

`measure` is the child's work, `interpret` turns however the child ended into an `Outcome`, `judge` holds numbers to
limits. Who starts the child and waits (the agent's updater, the compiler) is a thin shell around `command`, `Request`
and `interpret`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from skerry.bundle import check_files
from skerry.clock import Clock, SystemClock
from skerry.documents import parse
from skerry.errors import BundleError, FormatError, SkerryError
from skerry.execution.backend import Backend, Tensors, load_variant
from skerry.execution.ingraph import ToInput, make_preprocessor
from skerry.execution.parity import Noise, agree, proof_decoder
from skerry.execution.processing import Decoder, Frame
from skerry.manifest import Limits, Manifest, Variant, release_id, tighter
from skerry.wire import Answer, ProofReport

_WARM_UP = 2
_ROUNDS = 3  # times over the frames; only the first is compared, all are timed
_NICE = 10
_PR_SET_PDEATHSIG = 1
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGSYS, signal.SIGXCPU}
# The child's own exit codes, unlike Python's and those of the errors.
_OUT_OF_MEMORY = 75
_DAMAGED = 76


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked to do.

    Attributes:
        root: the directory that holds the release, verified.
        variants: ids of the eligible variants; all are run.
        limits: the device's own; the stricter of these and the bundle's count.
        memory_mib: what the model may allocate.
    """

    root: str
    variants: list[str]
    limits: Limits
    threads: int
    memory_mib: int


@dataclass(frozen=True)
class Outcome:
    """How a proof ended.

    Attributes:
        variant: the fastest variant that proved, or None.
        why: the reason, if none did.
        verdict: whether that speaks against the release; if not, the proof could not be run and may be tried again.
    """

    reports: tuple[ProofReport, ...] = ()
    variant: str | None = None
    why: str = ""
    verdict: bool = False


def judge(report: ProofReport, limits: Limits) -> str | None:
    """Why the measured numbers do not reach the limits, or None if they do."""
    share = report.same / report.decided if report.decided else 0.0
    if report.input_sqnr_db < limits.min_input_sqnr_db:
        return (
            f"its pre-processing is not the reference's: input SQNR {report.input_sqnr_db:.1f} dB, "
            f"at least {limits.min_input_sqnr_db:.1f} wanted (check colour order, mean, std and resize)"
        )
    if report.sqnr_db < limits.min_sqnr_db:
        return f"its outputs differ from fp32: SQNR {report.sqnr_db:.1f} dB, at least {limits.min_sqnr_db:.1f} wanted"
    if share < limits.min_agreement:
        return (
            f"its answers differ from fp32: {report.same} of {report.decided} agree, {limits.min_agreement:.0%} wanted"
        )
    if report.time_ratio is not None and report.time_ratio > limits.max_time_ratio:
        return f"it takes {report.time_ratio:.2f} times as long as fp32, at most {limits.max_time_ratio:.2f} wanted"
    return None


def conclude(reports: Sequence[ProofReport]) -> Outcome:
    """The fastest variant, if every eligible one proved. One that fails refuses the release: no silent fall-back."""
    if not reports:
        return Outcome(why="its proof reported on no variant", verdict=True)
    refused = [r for r in reports if r.refused is not None]
    if refused:
        return Outcome(tuple(reports), why=f"variant {refused[0].variant}: {refused[0].refused}", verdict=True)
    return Outcome(tuple(reports), variant=min(reports, key=lambda r: r.time_ms).variant)


def command() -> list[str]:
    """The child's command line. ``-I`` keeps the caller's folder and environment out of its imports."""
    return [sys.executable, "-I", "-m", "skerry.execution.prove"]


def environment() -> dict[str, str]:
    """The child's environment: nothing of ours, and one thread for numpy, which pre-processing is written for."""
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}


def interpret(returncode: int, stdout: bytes, stderr: bytes) -> Outcome:
    """What a child's end says. Pure."""
    if returncode == 0:
        try:
            return conclude(parse(stdout, list[ProofReport], "the proof's answer cannot be read"))
        except FormatError as exc:
            return Outcome(why=str(exc), verdict=True)
    last = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
    if returncode == _OUT_OF_MEMORY:
        return Outcome(why=f"the model needs more memory than its proof may have: {last[0][:300]}", verdict=True)
    if returncode > 0:
        return Outcome(why=last[0][:300], verdict=returncode != _DAMAGED)
    if -returncode in _CRASHES:
        return Outcome(why=f"the model crashed its proof ({_signal_name(-returncode)})", verdict=True)
    return Outcome(why=f"the proof was killed ({_signal_name(-returncode)})")


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def timed_out(seconds: float) -> Outcome:
    """What a child that had to be killed says: a verdict, since a proof takes seconds."""
    return Outcome(why=f"its proof did not end within {seconds:.0f} s", verdict=True)


def run(request: Request, timeout_s: float) -> Outcome:
    """Runs a proof in its child process, waits for its end, and says what it means. The agent does so in its loop."""
    import subprocess  # noqa: PLC0415 - the child has no use for it

    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command(),
            input=msgspec.json.encode(request),
            capture_output=True,
            timeout=timeout_s,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return timed_out(timeout_s)
    return interpret(done.returncode, done.stdout, done.stderr)


# --- the child -----------------------------------------------------------------------------------------------------


@dataclass
class _Candidate:
    """A loaded variant and what was measured of it so far.

    Attributes:
        entry: name of the net's input tensor, which a graph that takes frames gives as an output.
    """

    variant: Variant
    backend: Backend
    preprocess: ToInput
    decode: Decoder
    entry: str
    input_noise: Noise
    output_noise: dict[str, Noise]
    answers: list[list[Answer]]
    times: list[float]


def measure(root: Path, variants: Sequence[str], limits: Limits, threads: int, clock: Clock) -> list[ProofReport]:
    """Runs the proof of the release in ``root`` and reports on each variant.

    Raises:
        FormatError: the proof set cannot be read.
        BundleError: a file is no longer the one that was verified: damage on this disk.
        BackendError: a variant does not load or run here.
    """
    raw = (root / "bundle.json").read_bytes()
    manifest = Manifest.parse(raw)
    check_files(root, manifest, manifest.variant_files(set(variants)))
    limits = tighter(limits, manifest.proof.limits)
    candidates = [_load(root, manifest, manifest.variant(v), threads) for v in variants]
    proof = manifest.proof
    try:
        with safe_open(root / proof.frames, "np") as frames, safe_open(root / proof.reference, "np") as reference:
            for turn in range(_ROUNDS):
                for index in range(proof.count):
                    frame = _picture(frames.get_tensor(f"frame/{index}"))
                    for candidate in candidates:
                        outputs = _run(candidate, frame, limits, clock)
                        if turn == 0:
                            _compare(candidate, outputs, reference, index, has_input=index < proof.inputs)
        answers = parse((root / proof.answers).read_bytes(), list[list[Answer]], proof.answers)
    except (SafetensorError, OSError) as exc:
        raise FormatError(f"the proof set cannot be read: {exc}") from exc
    if len(answers) != proof.count:
        raise FormatError(f"{proof.answers} has answers to {len(answers)} frames, expected {proof.count}")
    base = next((c for c in candidates if c.variant.precision == "fp32"), None)
    return [_report(c, base, manifest, release_id(raw), answers, limits) for c in candidates]


def _load(root: Path, manifest: Manifest, variant: Variant, threads: int) -> _Candidate:
    backend = load_variant(root, manifest, variant, threads=threads)
    for _ in range(_WARM_UP):
        backend.run()
    noise = {t.name: Noise() for t in manifest.outputs}
    preprocess, decode = make_preprocessor(manifest, variant.graph), proof_decoder(manifest, variant.graph)
    return _Candidate(variant, backend, preprocess, decode, manifest.inputs[0].name, Noise(), noise, [], [])


def _picture(array: np.ndarray) -> Frame:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise FormatError(
            f"the proof set cannot be read: expected frames uint8 [height, width, 3], found {array.dtype} {array.shape}"
        )
    return array


def _run(candidate: _Candidate, frame: np.ndarray, limits: Limits, clock: Clock) -> Tensors:
    """One frame through the whole path, timed."""
    started = clock.monotonic()
    (tensor,) = candidate.backend.inputs.values()
    geometry = candidate.preprocess(frame, tensor)
    outputs = candidate.backend.run()
    answers = candidate.decode(outputs, geometry, limits.min_margin)
    candidate.times.append(clock.monotonic() - started)
    candidate.answers.append(answers)
    return outputs


def _compare(candidate: _Candidate, outputs: Tensors, reference: safe_open, index: int, *, has_input: bool) -> None:
    """Adds the frame that just ran to the candidate's noise."""
    if has_input:
        inputs = candidate.backend.inputs
        tensor = inputs[candidate.entry] if candidate.entry in inputs else outputs[candidate.entry]
        candidate.input_noise.add(reference.get_tensor(f"input/{index}"), tensor)
    for name, noise in candidate.output_noise.items():
        noise.add(reference.get_tensor(f"output/{name}/{index}"), outputs[name])


def _report(
    candidate: _Candidate,
    base: _Candidate | None,
    manifest: Manifest,
    release: str,
    answers: list[list[Answer]],
    limits: Limits,
) -> ProofReport:
    agreement = agree(manifest, limits, answers, candidate.answers[: manifest.proof.count])
    facts = candidate.backend.facts()
    ratios = [t / b for t, b in zip(candidate.times, base.times, strict=True)] if base else []
    report = ProofReport(
        release=release,
        variant=candidate.variant.id,
        backend=facts.backend,
        provider=facts.provider,
        version=facts.version,
        threads=facts.threads,
        input_sqnr_db=candidate.input_noise.db(),
        sqnr_db=min(noise.db() for noise in candidate.output_noise.values()),
        same=agreement.same,
        decided=agreement.decided,
        time_ms=statistics.median(candidate.times) * 1e3,
        time_ratio=statistics.median(ratios) if ratios else None,
        peak_mib=_status_kib("VmHWM") / 1024,  # getrusage would count what the parent had when it forked
    )
    return msgspec.structs.replace(report, refused=judge(report, limits))


def limit_process(memory_mib: int) -> None:
    """Binds this process: dies with its parent, goes last, and may allocate so much and no more.

    RLIMIT_DATA counts private writable memory, so it bounds what a model allocates; RLIMIT_AS would count the address
    space that libraries reserve and never touch.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICE)
    Path("/proc/self/oom_score_adj").open("w").write("1000")  # noqa: SIM115 - the kernel's file, not the disk's
    square = np.ones((512, 512), np.float32)
    np.matmul(square, square)  # BLAS takes its buffers here, not at the model's cost
    limit = (_status_kib("VmData") << 10) + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _status_kib(field: str) -> int:
    """A size that the kernel states about this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


def main() -> int:
    """The child: a `Request` on standard input, a list of `ProofReport` on standard output."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    limit_process(request.memory_mib)
    try:
        reports = measure(Path(request.root), request.variants, request.limits, request.threads, SystemClock())
    except MemoryError:
        return _out_of_memory(request, "MemoryError")
    except BundleError as exc:
        sys.stderr.write(f"{exc}\n")
        return _DAMAGED
    except SkerryError as exc:
        if "alloc" in str(exc).lower():  # ONNX Runtime's words for it: "bad_alloc", "Failed to allocate memory"
            return _out_of_memory(request, str(exc))
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(reports))
    return 0


def _out_of_memory(request: Request, detail: str) -> int:
    sys.stderr.write(f"more than {request.memory_mib} MiB ({detail})\n")
    return _OUT_OF_MEMORY


if __name__ == "__main__":
    sys.exit(main())
