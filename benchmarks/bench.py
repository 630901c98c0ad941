"""Runs the measurements: all of them, or those that are named."""

from __future__ import annotations

import importlib
import sys

# Each is a module beside this one, imported when it runs: one must not weigh down another.
MEASUREMENTS = (
    "preprocess",
    "calibration",
    "overhead",
    "memory",
    "fleet",
    "ingraph",
    "search",
    "tensorrt",
    "coverage",
    "prune_coverage",
    "accuracy",
    "speed",
    "faults",
    "tracking",
)


def main(names: list[str]) -> int:
    """0 if every bar was met."""
    if unknown := set(names) - set(MEASUREMENTS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    met = [importlib.import_module(f"benchmarks.{name}").main() for name in names or MEASUREMENTS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
