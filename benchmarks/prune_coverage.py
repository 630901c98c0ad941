"""How many of timm's architectures (``benchmarks/architectures.txt``) prune: parameters -35 %, multiplications -30 %.

Each one, with random weights that behave as if trained (benchmarks/timm_net.py), in a process of its own with a time
limit (benchmarks/prune_one.py): the smallest ratio that reaches both is taken out, channels in multiples of 8; the
pruned net runs, is exported to ONNX, and ONNX Runtime's answer is held to the pruned net's own. Beside it the analysis
is tried on timm's code: units that change places in every parameter at once must change nothing. What passed stays in
build/bench/prune_coverage, what missed is tried again, and a killed run goes on. Arguments: names, to do only these.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import venvs
from benchmarks.listed import Architecture, architectures, misses, outcomes, run
from benchmarks.results import OUT, Row, tell

FOLDER = OUT / "prune_coverage"
MAX_ERROR, MAX_VIOLATION = 1e-4, 1e-3
_LIMIT_S = 1800.0
_BAR = 90


def main(names: Sequence[str] = ()) -> bool:
    """Prunes what has not passed yet and tells; whether the bar was met."""
    python = venvs.python("timm")
    entries = [entry for entry in architectures() if entry.name in names or not names]
    found = outcomes(FOLDER, entries, lambda entry: prune_one(entry, python))
    missed = misses(found)
    passed = [outcome.facts for outcome in found if not outcome.missed]
    return tell(
        "prune_coverage",
        [
            Row("architectures not pruned, exported and equal", len(missed), "", max(len(found) - _BAR, 0)),
            Row("architectures in all", len(found), ""),
            Row("largest relative error of ONNX", max((f["error"] for f in passed), default=None), "", MAX_ERROR),
            Row("largest violation of the law", max((f["violation"] for f in passed), default=None), "", MAX_VIOLATION),
        ],
    )


def prune_one(
    entry: Architecture, python: Path, child: str = "benchmarks.prune_one"
) -> tuple[str | None, dict[str, Any]]:
    """One architecture in a process of its own: why it does not count, and what was found."""
    said, why = run([str(python), "-m", child, entry.name, entry.input], _LIMIT_S)
    facts = {} if why else json.loads(said.strip().splitlines()[-1])
    return why or _verdict(facts), facts


def _verdict(facts: dict[str, Any]) -> str | None:
    if "ratio" not in facts:
        return f"at 90 % it keeps {facts['parameters']:.0%} of its parameters; no rule for: {facts['frozen'] or 'none'}"
    if facts["violation"] > MAX_VIOLATION:
        return f"units that change places change the output by {facts['violation']:.1e}"
    if not facts["error"] <= MAX_ERROR:
        return f"ONNX differs from the pruned net by {facts['error']:.1e}"
    return None


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
