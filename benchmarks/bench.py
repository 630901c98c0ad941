"""Runs the measurements: all of them, or those that are named."""

from __future__ import annotations

import sys

from benchmarks import calibration, fleet, memory, overhead, preprocess

MEASUREMENTS = {
    "preprocess": preprocess.main,
    "calibration": calibration.main,
    "overhead": overhead.main,
    "memory": memory.main,
    "fleet": fleet.main,
}


def main(names: list[str]) -> int:
    """0 if every bar was met."""
    if unknown := set(names) - set(MEASUREMENTS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    met = [MEASUREMENTS[name]() for name in names or MEASUREMENTS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
