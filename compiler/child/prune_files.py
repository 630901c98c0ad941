"""A pruned net on disk: ``pruning.json`` says which indices stay, ``weights.safetensors`` holds what stays of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import fx

from skerry.manifest import Interface

from .prune import Pruner, PruningRecord, apply, load, tensors
from .train import Trained, Trainer, Training
from .usercode import UserError

_RECORD, _WEIGHTS = "pruning.json", "weights.safetensors"
MAX_VIOLATION = 1e-3  # rounding makes 1e-5 of it in deep nets, a coupling that was overlooked about 1


def pruned_into(
    folder: Path, model: torch.nn.Module, example: torch.Tensor, *, ratio: float, round_to: int, keep: Sequence[str]
) -> dict[str, Any]:
    """Prunes and saves. Returns what went; where nothing can go, only why, and nothing is saved.

    Raises:
        UserError: the net cannot be exported, or its code does not do what its graph says.
    """
    pruner = Pruner(model, example, keep=keep)
    violation = pruner.violation(model, torch.randn(example.shape, generator=torch.Generator().manual_seed(0)))
    if not violation <= MAX_VIOLATION:
        raise UserError(
            f"channels that change places change the outputs by {violation:.1e} (at most {MAX_VIOLATION:.0e}): the "
            "model's code treats them in a way that pruning does not see; please report it, and compile without pruning"
        )
    choice = pruner.choose(ratio, round_to)
    if choice.after == pruner.before:
        why = f"; operators without a rule: {', '.join(pruner.frozen)}" if pruner.frozen else ""
        return {"nothing": f"at a ratio of {ratio} nothing goes: no layer is wide enough to lose channels{why}"}
    pruned, record = pruner.carry_out(choice)
    (folder / _RECORD).write_bytes(msgspec.json.encode(record))
    save_file(tensors(pruned), folder / _WEIGHTS)
    return {
        "ratio": ratio,
        "parameters": [record.before.parameters, record.after.parameters],
        "macs": [record.before.macs, record.after.macs],
        "violation": violation,
        "frozen": record.frozen,
    }


def restored(
    folder: Path, model: torch.nn.Module, example: torch.Tensor, *, dynamic_batch: bool = False
) -> fx.GraphModule:
    """The pruned net, from the dense one's code. ``dynamic_batch`` as `capture` has it."""
    record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=PruningRecord)
    pruned = apply(model, example, record, dynamic_batch=dynamic_batch)
    load(pruned, load_file(folder / _WEIGHTS))
    return pruned


def train_into(
    folder: Path,
    before: Path,
    dense: torch.nn.Module,
    interface: Interface,
    how: Training,
    progress: Callable[[str], None],
) -> Trained:
    """Fine-tunes what `pruned_into` left in ``before``; saves the weights that answered best, and the record."""
    pruned = restored(before, dense, torch.zeros(how.batch, *interface.inputs[0].shape[1:]))
    trained = Trainer(pruned, dense, interface, how, progress).run()
    (folder / _RECORD).write_bytes((before / _RECORD).read_bytes())
    save_file(tensors(pruned), folder / _WEIGHTS)
    return trained
