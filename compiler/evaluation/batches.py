"""Holding a variant that takes several images at once to itself: each image must get the answer that it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from compiler.evaluation.compare import Hop, Reference
from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.execution.parity import Noise

MIN_BATCH_SQNR_DB = 40.0  # sums in another order, and a grid's step here and there: far above any limit of a variant


def compare_batches(variant: str, model: Path, reference: Reference, batch: tuple[int, int]) -> Hop:
    """Runs report frames together, as many as ``batch`` allows at least and at most, and each of them alone.

    Every node runs as it stands, so that a variant can be looked at whose kernels this CPU does not have.
    """
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=[PROVIDER])
    entry, count = session.get_inputs()[0].name, len(reference.frames)
    pooled, failed = Noise(), None
    for size in sorted({batch[0], batch[1]}):
        images = [reference.input(index % count) for index in range(size)]
        try:
            together = session.run(None, {entry: np.concatenate(images)})
        except Exception as exc:  # noqa: BLE001 - ONNX Runtime's own kinds; a hop says what failed, it does not raise
            failed = f"it does not run at a batch of {size}: {str(exc).splitlines()[0][:200]}"
            break
        for index in range(min(size, count)):
            for alone, found in zip(session.run(None, {entry: images[index]}), together, strict=True):
                pooled.add(alone, found[index : index + 1])
    worst = pooled.db()
    if failed is None and worst < MIN_BATCH_SQNR_DB:
        failed = f"an image's outputs depend on the others beside it: {worst:.1f} dB, {MIN_BATCH_SQNR_DB:.0f} wanted"
    name = f"{variant} at a batch of {batch[0]} and {batch[1]}"
    return Hop(name=name, frames=min(batch[1], count), sqnr_db=worst, limit_db=MIN_BATCH_SQNR_DB, failed=failed)
