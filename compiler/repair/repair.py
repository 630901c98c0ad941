"""Mends a hop that is out of tolerance, in at most 2 log2(units) + 5 builds.

What costs nothing at run time is tried first: a layer normalization that came in parts is *fused*, a range that does
not fit its values is *clipped* to one that does. Then the *residual* additions stay in floats. Each is kept if it
helped. What is still missing is found by bisection: the fewest *units* that must stay in floats.

The bisection only ever builds and measures whole models. It reads no inner value, which on an engine would change what
is fused (TensorRT#4338). Where the layers' errors are known besides, they say in which order the units are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.evaluation.compare import Hop
from compiler.evidence.evidence import Mend, Repair
from compiler.graph import layernorm
from compiler.repair.fitting import Range, fitting_ranges
from compiler.repair.suspicion import Unit, by_suspicion

Array = NDArray[np.generic]

_HELPED_DB = 1.0


@dataclass(frozen=True)
class Layout:
    """How a model is to be built.

    Attributes:
        graph: the prepared fp32 graph.
        keep_float: names of its nodes that stay fp32.
        ranges: of its values, by name; empty where nothing is put on a grid.
    """

    graph: onnx.ModelProto
    keep_float: frozenset[str]
    ranges: Mapping[str, Range]


class Bench(Protocol):
    """Where models are built and measured."""

    def build(self, layout: Layout) -> onnx.ModelProto: ...

    def measure(self, model: onnx.ModelProto) -> Hop: ...


@dataclass(frozen=True)
class Findings:
    """What is known of the model that failed; all of it may be empty.

    Attributes:
        errors: SQNR in dB of the graph's values (`compiler.evidence.layers.sqnr`).
        tensors: calibration inputs, to see which ranges fit.
    """

    errors: Mapping[str, float]
    tensors: Sequence[Array]


@dataclass(frozen=True)
class Mended:
    """How it ended: ``hop.failed`` is None if it was mended."""

    layout: Layout
    hop: Hop
    repair: Repair


def most_builds(units: int) -> int:
    """How many builds `mend` may take for a graph of so many units."""
    return int(2 * math.log2(max(units, 1)) + 5)


def mend(
    variant: str,
    layout: Layout,
    failed: Hop,
    bench: Bench,
    units: Sequence[Unit],
    findings: Findings,
    progress: Callable[[str], None] = lambda _text: None,
) -> Mended:
    """Brings ``failed`` back into tolerance if it can.

    Args:
        layout: how the model that failed was built.
        units: of ``layout.graph``, in its order.
    """
    trials = _Trials(bench, most_builds(len(units)), progress)
    state, mends = _State(layout, failed), list[Mend]()
    for kind, propose in _PROPOSALS:
        if state.hop.failed is None:
            break
        if (proposed := propose(state.layout, findings)) is not None:
            state = _keep_if_it_helped(kind, proposed, state, trials, mends)
    if state.hop.failed is not None:
        open_units = [unit for unit in units if not state.layout.keep_float.issuperset(unit.nodes)]
        order = by_suspicion(state.layout.graph, open_units, findings.errors)
        state = _keep_units(order, state, trials, mends)
    return Mended(state.layout, state.hop, _repair(variant, state.layout, mends, trials, units))


@dataclass(frozen=True)
class _State:
    layout: Layout
    hop: Hop


@dataclass(frozen=True)
class _Proposal:
    where: list[str]
    layout: Layout


class _Trials:
    """Builds and measures, so many times and no more."""

    def __init__(self, bench: Bench, most: int, progress: Callable[[str], None]) -> None:
        self._bench, self.most, self._progress = bench, most, progress
        self.builds = 0

    def __call__(self, layout: Layout) -> Hop | None:
        """How ``layout`` does, or None if no build is left."""
        if self.builds == self.most:
            return None
        self.builds += 1
        self._progress(f"repairing, build {self.builds} of at most {self.most}")
        return self._bench.measure(self._bench.build(layout))


def _keep_if_it_helped(kind: str, proposed: _Proposal, state: _State, trials: _Trials, mends: list[Mend]) -> _State:
    hop = trials(proposed.layout)
    if hop is None or (hop.failed is not None and hop.sqnr_db < state.hop.sqnr_db + _HELPED_DB):
        return state
    mends.append(_mend(kind, proposed.where, state.hop, hop))
    return _State(proposed.layout, hop)


def _mend(kind: str, where: list[str], before: Hop, after: Hop) -> Mend:
    fields = {"kind": kind, "where": where, "before_db": before.sqnr_db, "after_db": after.sqnr_db}
    return msgspec.convert(fields, Mend)


def _repair(variant: str, layout: Layout, mends: list[Mend], trials: _Trials, units: Sequence[Unit]) -> Repair:
    left = [unit for unit in units if layout.keep_float.issuperset(unit.nodes)]
    return Repair(
        variant=variant,
        mends=mends,
        builds=trials.builds,
        most_builds=trials.most,
        float_units=len(left),
        units=len(units),
        float_share=sum(u.macs for u in left) / max(1, sum(u.macs for u in units)),
    )


# --- what is tried on the whole graph -------------------------------------------------------------------------------


def _fuse(layout: Layout, _findings: Findings) -> _Proposal | None:
    graph, fused = layernorm.fuse(layout.graph)
    there = {v.name for v in graph.graph.input} | {value for node in graph.graph.node for value in node.output}
    ranges = {value: found for value, found in layout.ranges.items() if value in there}
    return _Proposal(fused, replace(layout, graph=graph, ranges=ranges)) if fused else None


def _clip(layout: Layout, findings: Findings) -> _Proposal | None:
    """The ranges that fit far worse than all others: most often one is wrong, and the others are better left alone."""
    return _refitted(layout, fitting_ranges(layout.graph, layout.ranges, findings.tensors))


def _clip_all(layout: Layout, findings: Findings) -> _Proposal | None:
    """All ranges that fit ill: with random ones, or a table of another net's, the worst are not the only ones."""
    return _refitted(layout, fitting_ranges(layout.graph, layout.ranges, findings.tensors, same_fault=0.0))


def _refitted(layout: Layout, better: Mapping[str, Range]) -> _Proposal | None:
    return _Proposal(list(better), replace(layout, ranges={**layout.ranges, **better})) if better else None


def _residual(layout: Layout, _findings: Findings) -> _Proposal | None:
    """Additions of two computed values: the stream that a transformer's blocks add to must not be rounded at each."""
    computed = {value for node in layout.graph.graph.node for value in node.output if node.op_type != "Constant"}
    adds = [n.name for n in layout.graph.graph.node if n.op_type == "Add" and computed.issuperset(n.input)]
    adds = [name for name in adds if name not in layout.keep_float]
    return _Proposal(adds, _with(layout, adds)) if adds and layout.ranges else None


_PROPOSALS: Sequence[tuple[str, Callable[[Layout, Findings], _Proposal | None]]] = (
    ("fuse", _fuse),
    ("clip", _clip),
    ("clip", _clip_all),
    ("residual", _residual),
)


def _with(layout: Layout, nodes: Collection[str]) -> Layout:
    """``layout`` with more nodes kept; a node that was fused away is not there to be kept."""
    there = {node.name for node in layout.graph.graph.node}
    return replace(layout, keep_float=layout.keep_float | there.intersection(nodes))


# --- which units stay in floats -------------------------------------------------------------------------------------


def _keep_units(order: Sequence[Unit], state: _State, trials: _Trials, mends: list[Mend]) -> _State:
    """Keeps as few of the units as bisection finds; none of them if even all do not help."""
    found = _bisect(order, state.layout, trials)
    if found is None:
        return state
    units, kept = found
    mends.append(_mend("keep", [unit.name for unit in units], state.hop, kept.hop))
    return kept


def _bisect(order: Sequence[Unit], layout: Layout, trials: _Trials) -> tuple[Sequence[Unit], _State] | None:
    """The shortest stretch of ``order`` whose units, kept in floats, bring the hop into tolerance.

    First the shortest beginning that does, then what its own beginning can spare: two bisections. The answer is always
    one that was measured; that more floats are never worse only makes it short.
    """

    def attempt(first: int, last: int) -> _State | None:
        kept = _with(layout, [node for unit in order[first:last] for node in unit.nodes])
        hop = trials(kept)
        return _State(kept, hop) if hop is not None and hop.failed is None else None

    best = attempt(0, len(order)) if order else None
    if best is None:
        return None
    too_few, last = 0, len(order)
    while last - too_few > 1:
        middle = (too_few + last) // 2
        if (state := attempt(0, middle)) is not None:
            best, last = state, middle
        else:
            too_few = middle
    first, too_many = 0, last
    while too_many - first > 1:
        middle = (first + too_many) // 2
        if (state := attempt(middle, last)) is not None:
            best, first = state, middle
        else:
            too_many = middle
    return _thin(order[first:last], best, layout, trials)


def _thin(units: Sequence[Unit], best: _State, layout: Layout, trials: _Trials) -> tuple[Sequence[Unit], _State]:
    """Spends the builds that are left on taking out units that only lay between."""
    for unit in units[1:-1]:
        fewer = [other for other in units if other is not unit]
        kept = _with(layout, [node for other in fewer for node in other.nodes])
        hop = trials(kept)
        if hop is not None and hop.failed is None:
            units, best = fewer, _State(kept, hop)
    return units, best
