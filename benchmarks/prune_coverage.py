"""How many of timm's architectures (``benchmarks/architectures.txt``) prune: parameters -35 %, multiplications -30 %.

Each one, with random weights that behave as if trained (benchmarks/timm_net.py), in a process of its own with a time
limit: the smallest ratio that reaches both is taken out, channels in multiples of 8; the pruned net runs, is exported
to ONNX, and ONNX Runtime's answer is held to the pruned net's own. Beside it the analysis is tried on timm's code:
units that change places in every parameter at once must change nothing. What passed stays in
build/bench/prune_coverage, what missed is tried again, and a killed run goes on. Arguments: names, to do only these.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("build/bench/prune_coverage")
MAX_ERROR, MAX_VIOLATION = 1e-4, 1e-3
PARAMETERS, MACS, ROUND_TO = 0.35, 0.30, 8
_LIMIT_S = 900.0
_BAR = 90


@dataclass(frozen=True)
class Outcome:
    """What came of one architecture.

    Attributes:
        missed: why it does not count, or null.
        facts: what the child found: ratio, parameters and macs left (as shares), error, violation, frozen operators.
    """

    name: str
    missed: str | None
    seconds: float
    facts: dict[str, Any]


def prune_one(
    name: str, shape: Sequence[int] = (1, 3, 224, 224), python: str = sys.executable, limit_s: float = _LIMIT_S
) -> Outcome:
    """Prunes one architecture in a process of its own.

    Args:
        python: an interpreter that has timm, torchvision and this repository's compiler.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [python, __file__, "--child", name, "x".join(map(str, shape))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    try:
        said, complained = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Outcome(name, f"not done within {limit_s:.0f} s", time.monotonic() - started, {})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = time.monotonic() - started
    if process.returncode:
        last = (complained.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return Outcome(name, last[:300], seconds, {})
    facts = json.loads(said.strip().splitlines()[-1])
    return Outcome(name, _verdict(facts), seconds, facts)


def _verdict(facts: dict[str, Any]) -> str | None:
    if "ratio" not in facts:
        return f"at 90 % it keeps {facts['parameters']:.0%} of its parameters; no rule for: {facts['frozen'] or 'none'}"
    if facts["violation"] > MAX_VIOLATION:
        return f"units that change places change the output by {facts['violation']:.1e}"
    if not facts["error"] <= MAX_ERROR:
        return f"ONNX differs from the pruned net by {facts['error']:.1e}"
    return None


def child(name: str, shape: list[int]) -> dict[str, Any]:
    """Everything that needs torch and timm; see `prune_one`."""
    import torch  # noqa: PLC0415

    from benchmarks import timm_net  # noqa: PLC0415
    from compiler.child.prune import Pruner  # noqa: PLC0415

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = timm_net.build(name, shape)
    picture = timm_net.pictures(1, shape)
    pruner = Pruner(model, picture)
    violation = pruner.violation(model, picture)
    choice = pruner.fit(parameters=PARAMETERS, macs=MACS, round_to=ROUND_TO)
    if choice is None:
        return {"violation": violation, **_shares(pruner.before, pruner.choose(0.9, ROUND_TO).after, pruner)}
    pruned, record = pruner.carry_out(choice)
    del model
    return {
        "ratio": record.ratio,
        "violation": violation,
        **_shares(record.before, record.after, pruner),
        "error": _exported_error(pruned, picture),
    }


def _shares(before: Any, after: Any, pruner: Any) -> dict[str, Any]:
    left = {"parameters": after.parameters / before.parameters, "macs": after.macs / before.macs}
    return {**left, "frozen": pruner.frozen, "blocks": len(pruner.blocks)}


def _exported_error(pruned: Any, picture: Any) -> float:
    """Largest difference of ONNX Runtime from the pruned net, over its largest output."""
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from compiler.child.export import to_onnx  # noqa: PLC0415

    with torch.no_grad():
        wanted = pruned(picture)
    program = to_onnx(pruned, picture.shape, "image", ["scores"], None)
    del pruned
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/net.onnx")  # as a file it may hold more than protobuf's two gigabytes
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", options)
        (found,) = session.run(None, {"image": picture.numpy()})
    return float(abs(found - wanted.numpy()).max() / abs(wanted.numpy()).max())


def kept(name: str) -> Outcome | None:
    """The outcome of an earlier run, if it passed."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        before = Outcome(**json.loads((FOLDER / f"{name}.json").read_text()))
        return before if not before.missed else None
    return None


def main(names: Sequence[str]) -> bool:
    """Prunes what has not passed yet and tells; whether the bar was met."""
    from benchmarks import venvs  # noqa: PLC0415 - the child has no use for them
    from benchmarks.coverage import architectures  # noqa: PLC0415
    from benchmarks.results import Row, tell  # noqa: PLC0415

    python, outcomes = str(venvs.python("timm")), []
    for entry in sorted(architectures(), key=lambda a: a.parameters):
        if names and entry.name not in names:
            continue
        outcome = kept(entry.name) or prune_one(entry.name, [int(n) for n in entry.input.split("x")], python)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{entry.name}.json").write_text(json.dumps(asdict(outcome), indent=1))
        print(f"{entry.name}: {outcome.missed or 'ok'} {outcome.facts} ({outcome.seconds:.0f} s)", flush=True)
        outcomes.append(outcome)
    passed = [o.facts for o in outcomes if not o.missed]
    missed = [o for o in outcomes if o.missed]
    for outcome in missed:
        print(f"✗ {outcome.name}: {outcome.missed}")
    return tell(
        "prune_coverage",
        [
            Row("architectures not pruned, exported and equal", len(missed), "", max(len(outcomes) - _BAR, 0)),
            Row("architectures in all", len(outcomes), ""),
            Row("largest relative error of ONNX", max((f["error"] for f in passed), default=None), "", MAX_ERROR),
            Row("largest violation of the law", max((f["violation"] for f in passed), default=None), "", MAX_VIOLATION),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], [int(n) for n in sys.argv[3].split("x")])))
        sys.exit(0)
    sys.exit(0 if main(sys.argv[1:]) else 1)
