"""The table of rules for every operator that is known: see `analysis`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from . import on_pieces, on_rest, on_views, on_weights
from .analysis import Analysis

RULES = {**on_weights.RULES, **on_pieces.RULES, **on_views.RULES, **on_rest.RULES}


def analyse(module: fx.GraphModule, keep: Sequence[str] = ()) -> Analysis:
    """What every tensor of ``module`` is made of; see `Analysis`."""
    return Analysis(module, RULES, keep)
