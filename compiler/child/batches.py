"""Holding an exported graph to torch at more than one batch: here is caught what silently stays at one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from skerry.execution.onnxrt import PROVIDER, session_options

from .usercode import UserError

_TOLERANCE = 1e-3  # of the largest value: rounding is far below, another batch's result far above

Run = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def check(model: Path, shape: Sequence[int], batch: Sequence[int], run: Run) -> None:
    """Compares ``model`` with torch at the least, the next and the most images at once.

    Raises:
        UserError: it does not take so many, or gives something else.
    """
    session = ort.InferenceSession(model, session_options(1), providers=[PROVIDER])
    (entry,) = session.get_inputs()
    if not isinstance(entry.shape[0], str):
        raise UserError(f"the export stays at a batch of {entry.shape[0]}, asked for are {batch[0]} to {batch[1]}")
    random = np.random.default_rng(0)
    low, high = batch
    for size in sorted({low, min(low + 1, high), high}):
        image = random.random((size, *shape[1:]), np.float32)
        try:
            found = session.run(None, {entry.name: image})
        except Exception as exc:
            raise UserError(f"the export does not run at a batch of {size}: {str(exc).splitlines()[0][:200]}") from exc
        for (name, wanted), value in zip(run(torch.from_numpy(image)).items(), found, strict=True):
            _hold(name, wanted.numpy(), value, size)


def _hold(name: str, wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any], size: int) -> None:
    if wanted.shape != found.shape:
        raise UserError(f"at a batch of {size}, torch gives {name} {wanted.shape} and the export {found.shape}")
    limit = _TOLERANCE * max(float(np.abs(wanted).max(initial=0)), 1e-30)
    if not np.abs(wanted - found).max(initial=0) <= limit:
        raise UserError(
            f"at a batch of {size} the export gives another {name} than torch: somewhere the model takes the batch of "
            "its example for a constant; export it at batch 1, or make it take its batch from x.shape[0]"
        )
