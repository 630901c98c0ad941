"""Measurements: ``python -m benchmarks.bench`` (minutes) and ``python -m benchmarks.soak`` (as long as asked for)."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: as the agent sets it
