"""How many of timm's architectures `skerry compile` takes to a verified CPU bundle: ``benchmarks/architectures.txt``.

Each is compiled by the real command in a process of its own with a time limit: random weights (benchmarks/timm_net.py),
the zero-configuration path, photos for calibration, fp32 for any CPU. The bundle is then taken apart as a device does
(signature, digests), run on its proof frames, and held to torch's outputs: largest difference over largest output.
A miss names the operator or the step, and the reason. The smallest come first. What passed stays, in
build/bench/coverage; what missed is tried again, and a killed run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from benchmarks import venvs
from benchmarks.release import environment, photos, unpack_into
from benchmarks.results import OUT, Row, tell
from skerry.errors import SkerryError
from skerry.execution.backend import load_variant
from skerry.execution.processing import Preprocessor

LIST = Path("benchmarks/architectures.txt")
FOLDER = OUT / "coverage"
MAX_ERROR = 1e-3
_LIMIT_S = 3600.0  # a minute as a rule; a machine that does much else besides must not decide
_BAR = 95

_TARGET = """description = "any CPU, fp32"
arch = ["x86_64", "aarch64"]
[[variant]]
id = "fp32"
backend = "onnxrt"
precision = "fp32"
source = "ONNX Runtime's CPU provider runs fp32 on every CPU"
"""
_BUILDER = "from timm_net import build as _build\n\n\ndef build():\n    return _build({name!r}, {shape!r})\n"


@dataclass(frozen=True)
class Architecture:
    """A line of the list."""

    family: str
    parameters: int
    input: str
    name: str


@dataclass(frozen=True)
class Outcome:
    """What came of one.

    Attributes:
        error: largest difference from torch over torch's largest output; null if there was no bundle.
        missed: why it does not count, or null.
        seconds: of the command.
    """

    name: str
    error: float | None
    missed: str | None
    seconds: float


def architectures() -> list[Architecture]:
    """The list, in its order."""
    lines = [line.split("\t") for line in LIST.read_text().splitlines() if not line.startswith("#")]
    return [Architecture(family, int(count), size, name) for family, count, size, name in lines]


def main() -> bool:
    """Compiles what has not passed yet and tells; whether the bar was met."""
    python = venvs.python("timm")
    smallest_first = sorted(architectures(), key=lambda a: a.parameters)
    outcomes = [kept(FOLDER, a.name, lambda a=a: compile_one(a, python)) for a in smallest_first]
    missed = [o for o in outcomes if o.missed]
    errors = [o.error for o in outcomes if o.error is not None and not o.missed]
    for outcome in missed:
        print(f"✗ {outcome.name}: {outcome.missed}")
    took = sum(o.seconds for o in outcomes)
    return tell(
        "coverage",
        [
            Row("architectures not compiled to a verified bundle", len(missed), "", len(outcomes) - _BAR),
            Row("architectures in all", len(outcomes), ""),
            Row("largest relative error of a bundle", max(errors, default=None), "", MAX_ERROR, f"of {len(errors)}"),
            Row("time of the command, in all", took / 60, "min"),
        ],
    )


def kept(folder: Path, name: str, make: Callable[[], Outcome]) -> Outcome:
    """The outcome of an earlier run if it passed, else a new one; written down as soon as it is there."""
    file = folder / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        before = Outcome(**json.loads(file.read_text()))
        if not before.missed:
            return before
    outcome = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(outcome)))
    verdict = f"✗ {outcome.missed}" if outcome.missed else f"✓ {outcome.error:.1e}"
    print(f"{outcome.name}: {verdict} ({outcome.seconds:.0f} s)", flush=True)
    return outcome


def compile_one(architecture: Architecture, python: Path) -> Outcome:
    """The command on one architecture, and the check of what it made."""
    folder = (FOLDER / "now" / architecture.name).absolute()
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy("benchmarks/timm_net.py", folder)
    shape = [int(n) for n in architecture.input.split("x")]
    (folder / "net.py").write_text(_BUILDER.format(name=architecture.name, shape=shape))
    (folder.parent / "cpu.toml").write_text(_TARGET)
    out = folder.parent / "net.skb"
    command = [str(python), "-m", "skerry", "compile", f"{folder}/net.py:build", "--input", architecture.input]
    command += ["--calib", str(photos()), "--target", str(folder.parent / "cpu.toml")]
    started = time.monotonic()
    why = run([*command, "--work", str(folder.parent / "work"), "-o", str(out)])
    seconds = time.monotonic() - started
    error = None
    if why is None:
        try:
            error = relative_error(out)
            why = None if error <= MAX_ERROR else f"its relative error is {error:.1e}"
        except SkerryError as exc:
            why = f"the bundle does not verify: {exc}"
    shutil.rmtree(folder.parent)
    return Outcome(architecture.name, error, why, seconds)


def run(command: list[str], limit_s: float = _LIMIT_S) -> str | None:
    """Runs the command and all that it starts; what it said when it failed, or None."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"not done within {limit_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = said.strip().splitlines()
    return None if process.returncode == 0 else (lines[-1] if lines else f"exit code {process.returncode}")[:400]


def relative_error(packed: Path) -> float:
    """Takes a bundle apart as a device does, runs its fp32 variant on its proof frames, and compares with torch's.

    Returns:
        The largest difference over the largest output, over all frames and outputs.
    """
    root = packed.with_suffix(".folder")
    manifest = unpack_into(root, packed)
    backend = load_variant(root, manifest, manifest.variant("fp32"), threads=1)
    preprocess, worst = Preprocessor(manifest), 0.0
    (tensor,) = backend.inputs.values()
    proof = manifest.proof
    with safe_open(root / proof.frames, "np") as frames, safe_open(root / proof.reference, "np") as reference:
        for index in range(proof.count):
            preprocess(frames.get_tensor(f"frame/{index}"), tensor)
            for name, found in backend.run().items():
                wanted = reference.get_tensor(f"output/{name}/{index}")
                worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    backend.close()
    return worst


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
