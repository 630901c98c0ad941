"""Structured pruning: channels, heads and hidden places leave a net, and a smaller net of the same kind is left.

The net is taken as torch.export's graph, in which split, chunk, concat, views and attention are plain operators with
plain numbers: channels are followed through all of them, and the numbers are corrected where channels go. So the user's
code may compute its shapes however it likes. A pruned net = builder + weights + `PruningRecord`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import fx

from .pruning.analysis import Analysis
from .pruning.cost import Cost, cost
from .pruning.graph import attribute, capture
from .pruning.law import violation
from .pruning.rewrite import Kept, Removal, put
from .pruning.rules import analyse
from .pruning.units import Block, choose, find_blocks
from .usercode import UserError


class PruningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was left of a net.

    Attributes:
        ratio: share of the channels that was asked for.
        round_to: channels were kept in multiples of this where a layer is wide enough.
        choices: lists of indices that stay.
        kept: by parameter or buffer, for each axis the number of its choice; null where the axis stays whole.
        frozen: operators without a rule, whose channels all stayed.
    """

    format: Literal["skerry.pruning/1"] = "skerry.pruning/1"
    ratio: float
    round_to: int
    before: Cost
    after: Cost
    choices: list[list[int]]
    kept: dict[str, list[int | None]]
    frozen: list[str] = []

    def indices(self) -> Kept:
        """The indices that stay, by parameter and axis."""
        return {
            name: {axis: self.choices[n] for axis, n in enumerate(axes) if n is not None}
            for name, axes in self.kept.items()
        }


class Pruner:
    """One net, followed through: `choose` is cheap and may be asked for many ratios, `carry_out` once.

    Args:
        keep: names of modules and parameters that lose no outputs; the net's own outputs never do.

    Raises:
        UserError: torch cannot export the net.
    """

    def __init__(
        self, model: torch.nn.Module, example: torch.Tensor, *, keep: Sequence[str] = (), dynamic_batch: bool = False
    ) -> None:
        self._module = captured(model, example, dynamic_batch=dynamic_batch)
        self._net = analyse(self._module, keep)
        self._learned = _learned(self._module, self._net)
        self._before = cost(Removal(self._net, ()), self._learned)
        self._blocks = find_blocks(self._net)

    @property
    def blocks(self) -> Sequence[Block]:
        """What may go."""
        return self._blocks

    @property
    def before(self) -> Cost:
        """What the net costs whole."""
        return self._before

    @property
    def frozen(self) -> list[str]:
        """Operators that no rule is known for, and whose channels all stay."""
        return sorted(self._net.unknown)

    def choose(self, ratio: float, round_to: int) -> Choice:
        """What would go at a ratio, and what the net would cost then."""
        removal = Removal(self._net, choose(self._blocks, ratio, round_to))
        return Choice(ratio, round_to, removal, cost(removal, self._learned))

    def violation(self, model: torch.nn.Module, example: torch.Tensor) -> float:
        """How far ``model`` is from the law in `law`: a wrong analysis is about 1, a right one under 1e-4."""
        return violation(model, self._net, self._blocks, example)

    def fit(self, *, parameters: float, macs: float, round_to: int) -> Choice | None:
        """The smallest ratio, in hundredths, that takes out these shares of parameters and multiplications."""
        low, high = 0, 95
        best: Choice | None = None
        while low < high:
            middle = (low + high) // 2
            choice = self.choose(middle / 100, round_to)
            enough = choice.after.parameters <= (1 - parameters) * self._before.parameters
            if enough and choice.after.macs <= (1 - macs) * self._before.macs:
                best, high = choice, middle
            else:
                low = middle + 1
        return best

    def carry_out(self, choice: Choice) -> tuple[fx.GraphModule, PruningRecord]:
        """The pruned net and its record. Uses this pruner up."""
        choices, kept = _numbered(choice.removal.kept(), {n: len(dims) for n, dims in self._net.held.items()})
        record = PruningRecord(
            ratio=choice.ratio,
            round_to=choice.round_to,
            before=self._before,
            after=choice.after,
            choices=choices,
            kept=kept,
            frozen=self.frozen,
        )
        choice.removal.carry_out()
        return self._module, record


def _numbered(kept: Kept, ranks: Mapping[str, int]) -> tuple[list[list[int]], dict[str, list[int | None]]]:
    """Each list of indices once, and by name and axis the number of its list."""
    numbers: dict[tuple[int, ...], int] = {}
    axes: dict[str, list[int | None]] = {name: [None] * ranks[name] for name in kept}
    for name, by_axis in kept.items():
        for axis, stays in by_axis.items():
            axes[name][axis] = numbers.setdefault(tuple(stays), len(numbers))
    return [list(stays) for stays in numbers], axes


@dataclass(frozen=True)
class Choice:
    """What goes at one ratio."""

    ratio: float
    round_to: int
    removal: Removal
    after: Cost


def prune(
    model: torch.nn.Module, example: torch.Tensor, ratio: float, *, round_to: int = 8, keep: Sequence[str] = ()
) -> tuple[fx.GraphModule, PruningRecord]:
    """Takes about ``ratio`` of the channels out of every layer that can lose some. ``model`` itself stays as it is."""
    pruner = Pruner(model, example, keep=keep)
    return pruner.carry_out(pruner.choose(ratio, round_to))


def apply(
    model: torch.nn.Module, example: torch.Tensor, record: PruningRecord, *, dynamic_batch: bool = False
) -> fx.GraphModule:
    """The pruned net, from a fresh build and the record; its weights are those of the build that stay.

    Raises:
        UserError: the record is not of this net.
    """
    module = captured(model, example, dynamic_batch=dynamic_batch)
    net = analyse(module)
    kept = record.indices()
    removal = Removal(net, _gone(net, kept))
    if removal.kept() != kept:
        raise UserError("the pruning record does not fit the model: its code or its builder's settings have changed")
    removal.carry_out()
    return module


def tensors(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that the net reads, by name. Constants that the code wrote down come with the code."""
    names = dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    found = {name: attribute(module, name) for name in names if not name.startswith("lifted_tensor_")}
    return {name: value.detach().contiguous() for name, value in found.items() if isinstance(value, torch.Tensor)}


def load(module: fx.GraphModule, weights: dict[str, torch.Tensor]) -> None:
    """Puts saved tensors in, strictly.

    Raises:
        UserError: a name or a shape differs.
    """
    own = tensors(module)
    differing = sorted(own.keys() ^ weights.keys()) + [
        n for n in own if n in weights and own[n].shape != weights[n].shape
    ]
    if differing:
        raise UserError(f"the pruned weights do not fit the record: {differing[0]} (of {len(differing)} that differ)")
    for name, value in weights.items():
        put(module, name, value)


def captured(model: torch.nn.Module, example: torch.Tensor, *, dynamic_batch: bool = False) -> fx.GraphModule:
    """`capture`, with the exporter's pages of reasons on one line."""
    try:
        return capture(model, example, dynamic_batch=dynamic_batch)
    except Exception as exc:
        lines = str(exc).strip().splitlines() or [""]
        raise UserError(
            f"torch cannot export the model, so it cannot be pruned: {type(exc).__name__}: {lines[0]}"
        ) from exc


def _learned(module: fx.GraphModule, net: Analysis) -> frozenset[str]:
    return frozenset(name for name in net.held if isinstance(attribute(module, name), torch.nn.Parameter))


def _gone(net: Analysis, kept: Kept) -> frozenset[int]:
    """Units of which nothing is kept."""
    seen: set[int] = set()
    stay: set[int] = set()
    for name, dims in net.held.items():
        for axis, dim in enumerate(dims):
            if dim is None:
                continue
            stays = kept.get(name, {}).get(axis)
            positions = set(range(len(dim)) if stays is None else stays)
            for position, holder in enumerate(dim.tolist()):
                units = net.labels.units(holder)
                seen.update(units)
                stay.update(units if position in positions else ())
    return frozenset(seen - stay)
