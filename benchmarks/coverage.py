"""How many of timm's architectures `skerry compile` takes to a verified CPU bundle: ``benchmarks/architectures.txt``.

Each is compiled by the real command in a process of its own with a time limit: random weights (benchmarks/timm_net.py),
the zero-configuration path, photos for calibration, fp32 for any CPU. The bundle is then taken apart as a device does
(signature, digests), run on its proof frames, and held to torch's outputs: largest difference over largest output.
A miss names the operator or the step, and the reason. The smallest come first. What passed stays, in
build/bench/coverage; what missed is tried again, and a killed run goes on.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks import venvs
from benchmarks.listed import Architecture, architectures, misses, outcomes, run
from benchmarks.release import environment, photos, unpack_into
from benchmarks.results import OUT, Row, tell
from skerry.errors import SkerryError
from skerry.execution.backend import load_variant
from skerry.execution.processing import Preprocessor

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


def main() -> bool:
    """Compiles what has not passed yet and tells; whether the bar was met."""
    python = venvs.python("timm")
    found = outcomes(FOLDER, architectures(), lambda entry: compile_one(entry, python))
    missed = misses(found)
    errors = [outcome.facts["error"] for outcome in found if not outcome.missed]
    return tell(
        "coverage",
        [
            Row("architectures not compiled to a verified bundle", len(missed), "", len(found) - _BAR),
            Row("architectures in all", len(found), ""),
            Row("largest relative error of a bundle", max(errors, default=None), "", MAX_ERROR, f"of {len(errors)}"),
            Row("time of the command, in all", sum(outcome.seconds for outcome in found) / 60, "min"),
        ],
    )


def compile_one(architecture: Architecture, python: Path) -> tuple[str | None, dict[str, Any]]:
    """The command on one architecture, and the check of what it made: why it does not count, and the error."""
    folder = (FOLDER / "now" / architecture.name).absolute()
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy("benchmarks/timm_net.py", folder)
    (folder / "net.py").write_text(_BUILDER.format(name=architecture.name, shape=architecture.shape))
    (folder.parent / "cpu.toml").write_text(_TARGET)
    out = folder.parent / "net.skb"
    command = [str(python), "-m", "skerry", "compile", f"{folder}/net.py:build", "--input", architecture.input]
    command += ["--calib", str(photos()), "--target", str(folder.parent / "cpu.toml")]
    _, why = run([*command, "--work", str(folder.parent / "work"), "-o", str(out)], _LIMIT_S, environment())
    try:
        return (why, {}) if why else _verified(out)
    finally:
        shutil.rmtree(folder.parent)


def _verified(bundle: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        error = relative_error(bundle)
    except SkerryError as exc:
        return f"the bundle does not verify: {exc}", {}
    return None if error <= MAX_ERROR else f"its relative error is {error:.1e}", {"error": error}


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
