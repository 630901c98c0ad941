"""The law that every analysis must keep, tried on the net itself.

If units of one block are alike in all that they touch, then a net in which they have changed places, in every parameter
at once, computes the same. A coupling that was overlooked breaks this at once, and normalization, softmax and attention
keep it exactly, where setting channels to zero would not. It is tried on the graph, after the graph was held to the
user's own code: that may keep something of its parameters between runs (tables of attention biases), and so not notice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from .analysis import Analysis
from .graph import attribute, tensors_of
from .units import Block


def rearranged(net: Analysis, blocks: Sequence[Block], seed: int) -> dict[str, torch.Tensor]:
    """The net's tensors with the units of every block in another order; of rival blocks one changes."""
    target = _order(blocks, np.random.default_rng(seed))
    found = {}
    for name, dims in net.held.items():
        value = attribute(net.module, name).detach()
        for axis, dim in enumerate(dims):
            if dim is not None:
                value = value.index_select(axis, torch.tensor(_sources(net, dim, target)))
        found[name] = value
    return found


def _order(blocks: Sequence[Block], generator: np.random.Generator) -> dict[int, int]:
    target: dict[int, int] = {}
    used: set[int] = set()
    for index, block in enumerate(blocks):
        if not block.rivals & used:
            used.add(index)
            target.update(zip(block.units, generator.permutation(block.units).tolist(), strict=True))
    return target


def _sources(net: Analysis, dim: np.ndarray, target: dict[int, int]) -> list[int]:
    """For each position, where its new content stands: the n-th of one unit comes from the n-th of another."""
    holds = [net.labels.units(position) for position in dim.tolist()]
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, units in enumerate(holds):
        places[units].append(place)
    taken: dict[tuple[int, ...], int] = defaultdict(int)
    sources = []
    for units in holds:
        other = tuple(target.get(unit, unit) for unit in units)
        sources.append(places[other][taken[units]])
        taken[units] += 1
    return sources


def violation(model: torch.nn.Module, net: Analysis, blocks: Sequence[Block], example: torch.Tensor) -> float:
    """How far the graph is from the model, or from itself when units change places: over the largest output."""
    with torch.no_grad():
        wanted = tensors_of(model(example))
        before = tensors_of(net.module(example))
        after = tensors_of(torch.func.functional_call(net.module, rearranged(net, blocks, 0), (example,)))
    return max(apart(wanted, before), apart(before, after))


def apart(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The largest difference over the largest value, of the worst tensor. Not a number is as far as can be."""
    pairs = zip(wanted, found, strict=True)
    errors = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs]
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)
