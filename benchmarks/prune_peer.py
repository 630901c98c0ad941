"""What `benchmarks.prune_coverage` asks, of Torch-Pruning as it comes (benchmarks/prune_one_peer.py): no bar, a figure.

Argument: N, to take every Nth line of the list, from the first.
"""

from __future__ import annotations

import sys

from benchmarks import venvs
from benchmarks.listed import architectures, misses, outcomes
from benchmarks.prune_coverage import prune_one
from benchmarks.results import OUT, Row, tell


def main(every: int = 1) -> bool:
    """Tells how many it prunes."""
    python = venvs.python("pruning")
    entries = [entry for entry in architectures() if entry.line % every == 0]
    found = outcomes(OUT / "prune_peer", entries, lambda entry: prune_one(entry, python, "benchmarks.prune_one_peer"))
    return tell(
        "prune_peer",
        [
            Row("architectures that Torch-Pruning did not prune", len(misses(found)), ""),
            Row("architectures in all", len(found), ""),
        ],
    )


if __name__ == "__main__":
    sys.exit(0 if main(*map(int, sys.argv[1:])) else 1)
