"""In which order fusion units are suspected of an error, from what is known of the values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import onnx


class Unit(Protocol):
    """What is quantized as one: see compiler/quantization/units.py."""

    @property
    def name(self) -> str: ...

    @property
    def nodes(self) -> Sequence[str]: ...

    @property
    def macs(self) -> int: ...


SomeUnit = TypeVar("SomeUnit", bound=Unit)


def by_suspicion(graph: onnx.ModelProto, units: Sequence[SomeUnit], errors: Mapping[str, float]) -> list[SomeUnit]:
    """``units`` with the worst first; in their own order where no error is known.

    A unit is suspect by the noise that it adds to what it was given. The ones that it reads from are suspect by half
    of that: its input's grid is laid on their output.

    Args:
        errors: SQNR in dB of the graph's values, by name.
    """
    if not errors:
        return list(units)
    noise = {value: 10.0 ** (-db / 10.0) for value, db in errors.items()}
    nodes = {node.name: node for node in graph.graph.node}
    gives = {u.name: [v for n in u.nodes if n in nodes for v in nodes[n].output] for u in units}
    owner = {value: name for name, values in gives.items() for value in values}
    reads = {u.name: [v for n in u.nodes if n in nodes for v in nodes[n].input] for u in units}
    known = _carried(graph, noise)
    score: dict[str, float] = {}
    for name, values in gives.items():
        given = max((known.get(v, 0.0) for v in reads[name] if owner.get(v) != name), default=0.0)
        score[name] = max(0.0, max((noise.get(v, 0.0) for v in values), default=0.0) - given)
    for name, added in list(score.items()):
        for value in reads[name]:
            if (source := owner.get(value, name)) != name:
                score[source] = max(score[source], added / 2)
    return sorted(units, key=lambda unit: -score[unit.name])


def _carried(graph: onnx.ModelProto, noise: Mapping[str, float]) -> dict[str, float]:
    """The noise of every value: of one that was not measured, that of what it is made of."""
    carried = dict(noise)
    for node in graph.graph.node:
        for value in node.output:
            carried.setdefault(value, max((carried.get(v, 0.0) for v in node.input), default=0.0))
    return carried
