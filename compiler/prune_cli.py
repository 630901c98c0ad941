"""The options of ``skerry compile`` that speak of pruning."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.job import Prune
from compiler.pruned import WANTS_SAMPLES
from compiler.pruning.prune import EPOCHS
from compiler.sources.recipe import Source
from skerry.errors import UsageError

UNTRAINED = "what is pruned is not fine-tuned: there are no pictures to train with (--train)"


def add_options(p: argparse.ArgumentParser) -> None:
    """Adds ``--prune``, ``--prune-keep``, ``--train`` and ``--epochs``."""
    p.add_argument(
        "--prune",
        action="store_true",
        help="take channels out, if that is faster and stays within --max-drop of the whole net (with --eval)",
    )
    p.add_argument(
        "--train",
        type=Path,
        metavar="DIR",
        help="what a pruned net is fine-tuned on: a folder per class, or photos without labels",
    )
    p.add_argument(
        "--epochs", type=int, metavar="N", help=f"of fine-tuning, for each net that is tried (default: {EPOCHS})"
    )
    p.add_argument(
        "--prune-keep",
        action="append",
        default=[],
        metavar="NAME",
        help="a module that keeps all its output channels; repeatable",
    )


def asked(options: argparse.Namespace, source: Source) -> Prune | None:
    """What ``--prune`` asks for. Raises `UsageError` for options that make no sense together."""
    replays = options.plan is not None
    for option, given, wants, there in (
        ("--prune-keep", options.prune_keep, "--prune", options.prune),
        ("--epochs", options.epochs is not None, "--prune and --train", options.prune and options.train),
        ("--train", options.train, "--prune, or a --plan that pruned", options.prune or replays),
    ):
        if given and not there:
            raise UsageError(f"{option} speaks of pruning alone: it goes with {wants}")
    if not options.prune:
        return None
    if replays:
        raise UsageError("--prune decides what the plan has decided already: leave --prune or --plan out")
    if source.file is not None:
        raise UsageError(
            f"--prune cuts a torch module, and {source.file.name} is a file that was exported from one: compile the "
            "builder instead, file.py:callable, with its --weights"
        )
    if options.eval is None or options.max_drop is None:
        raise UsageError(WANTS_SAMPLES)
    if options.train is not None and not options.train.is_dir():
        raise UsageError(f"--train {options.train} is not a folder; expected a folder per class, or photos")
    if options.epochs is not None and options.epochs < 1:
        raise UsageError(f"--epochs {options.epochs}: expected 1 or more")
    return Prune(keep=tuple(options.prune_keep), epochs=options.epochs or EPOCHS)
