"""Faults that must not pass: forty that people met (faults.toml, written down first), and 500 random mutations.

Each fault is injected for real where it comes in, and judged by the compiler's own check of that hop. The truth is
counted on labelled pictures that no check reads: a fault *moves the metric* if top-1 or AP50 drops by more than a
point, or under 90 % of the answers that fp32 was sure of stay the same. Refused and moved is caught; moved and not
refused is MISSED; refused and not moved is a false alarm. What --repair can mend is mended, and judged again.

``python -m benchmarks.faults NAME…`` runs those faults alone, without mutations. A quarter of an hour for all.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import faults_data, faults_export, faults_layout, faults_mutated
from benchmarks.faults_case import UNSHOWN, Judged, sound
from benchmarks.faults_mutated import KINDS, Mutation
from benchmarks.faults_nets import FOLDER, NETS, net
from benchmarks.results import Row, tell

LIST = Path(__file__).parent / "faults.toml"
_INJECTIONS = {**faults_export.FAULTS, **faults_data.FAULTS, **faults_layout.FAULTS}
_MUTATIONS = 500
_NOT_MENDED = 20.0  # percent of the faults that can be mended


@dataclass(frozen=True)
class Fault:
    """One of the list, and how it ended."""

    said: Mapping[str, Any]
    judged: Judged

    @property
    def mendable(self) -> bool:
        """It can be mended, and there was something to mend."""
        return bool(self.said["mend"]) and self.judged.refused is not None


def main(names: Sequence[str] = ()) -> bool:
    """Measures and tells; whether the bars were met."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    console = Console(width=160, highlight=False)
    listed = tomllib.loads(LIST.read_text())["fault"]
    assert {f["name"] for f in listed} == set(_INJECTIONS), "each fault of the list has its injection"
    chosen = [f for f in listed if not names or f["name"] in names]
    refused = [] if names else [why for name in NETS for why in sound(net(name))]
    faults = [Fault(said, injected(said["name"])) for said in _heard(console, chosen)]
    console.print(named_table(faults))
    found: list[Mutation] = []
    if not names:
        for mutation in faults_mutated.mutations(_MUTATIONS):
            found.append(mutation)
            if len(found) % 50 == 0:
                console.print(mutation_table(found))
            if mutation.judged.verdict == "MISSED":
                console.print(Text(f"MISSED {mutation.kind}: {mutation.words}: {mutation.judged.truth}"))
        console.print(mutation_table(found))
    _keep(faults, found)
    made = rows(faults, found)
    if not names:
        made.append(Row("sound nets refused", len(refused), "", 0, "; ".join(refused) or ", ".join(NETS)))
    return tell("faults", made)


def injected(name: str) -> Judged:
    """One of the list, judged."""
    return _INJECTIONS[name]()


def _heard(console: Console, listed: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for number, said in enumerate(listed, 1):
        console.print(Text(f"{number}: {said['name']}"), style="dim")
        yield said


def rows(faults: Sequence[Fault], found: Sequence[Mutation]) -> list[Row]:
    """The figures, with their bars."""
    named = Counter(f.judged.verdict for f in faults)
    mendable = [f for f in faults if f.mendable]
    left = [f for f in mendable if not f.judged.repaired]
    listed = ", ".join(str(f.said["name"]) for f in left)
    made = [
        Row("named faults: missed", named["MISSED"], "", 0, f"of {len(faults)}, {named['caught']} caught"),
        Row("named faults: false alarms", named["false alarm"], "", None, "refused, and the metric stood"),
        Row("named faults: tolerated", named["tolerated"], "", None, "the metric stood"),
    ]
    if mendable:
        share = 100 * len(left) / len(mendable)
        made.append(Row("not mended", share, "%", _NOT_MENDED, f"{len(left)} of {len(mendable)}: {listed or 'none'}"))
    if found:
        total = Counter(m.judged.verdict for m in found)
        alarms = [m.judged.refused or "" for m in found if m.judged.verdict == "false alarm"]
        unshown, said = sum(UNSHOWN in why for why in alarms), f"{total['tolerated']} tolerated"
        made += [
            Row("mutations: missed", total["MISSED"], "", 0, f"of {len(found)}, {total['caught']} caught"),
            Row("mutations: false alarms", len(alarms), "", None, f"{unshown} could not be shown to hold; {said}"),
        ]
    return made


def named_table(faults: Sequence[Fault]) -> Table:
    """The list."""
    table = Table("fault", "comes in by", "must be refused by", "metric", "verdict", "mended", title="named faults")
    for fault in faults:
        judged = fault.judged
        metric = "by rule" if judged.truth is None else str(judged.truth)
        said = fault.said
        table.add_row(said["name"], said["where"], said["hop"], metric, judged.verdict, _mended(judged))
    return table


def _mended(judged: Judged) -> str:
    if judged.mended is None:
        return ""
    repair = judged.mended.repair
    how = ", ".join(f"{mend.kind} {len(mend.where)}" for mend in repair.mends) or "nothing helped"
    left = f"{repair.float_units} of {repair.units} units in floats"
    return f"{'yes' if judged.repaired else 'NO'}: {how}; {left}; {judged.after or 'still refused'}"


def mutation_table(found: Sequence[Mutation]) -> Table:
    """Verdicts by kind."""
    verdicts = ("caught", "MISSED", "false alarm", "tolerated")
    table = Table("mutation", "made", *verdicts, title="random mutations")
    for kind in KINDS:
        count = Counter(m.judged.verdict for m in found if m.kind == kind)
        table.add_row(kind, str(count.total()), *(str(count[v]) for v in verdicts))
    return table


def _keep(faults: Sequence[Fault], found: Sequence[Mutation]) -> None:
    """Every case, to be looked into."""
    named = [{"name": f.said["name"], **_told(f.judged)} for f in faults]
    mutated = [{"kind": m.kind, "what": m.words, **_told(m.judged)} for m in found]
    (FOLDER / "cases.json").write_text(json.dumps({"named": named, "mutations": mutated}, indent=2))


def _told(judged: Judged) -> dict[str, object]:
    return {
        "verdict": judged.verdict,
        "metric": None if judged.truth is None else str(judged.truth),
        "refused": judged.refused,
        "mended": _mended(judged),
    }


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
