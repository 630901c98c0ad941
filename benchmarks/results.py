"""How a measurement is told: rows that know their bar, printed as a table and kept as JSON."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path("build/bench")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        value: None if it could not be measured.
        bar: what it must not pass, if anything; an aim that is only printed has none.
        note: how to read it.
    """

    what: str
    value: float | None
    unit: str
    bar: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        return self.bar is not None and (self.value is None or self.value > self.bar)


def tell(name: str, rows: Sequence[Row]) -> bool:
    """Prints the rows and writes ``build/bench/<name>.json``. Returns whether every bar was met."""
    table = Table("", "measured", "bar", "", title=name, title_justify="left")
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.3f} {row.unit}"
        bar = "" if row.bar is None else f"{'✗' if row.missed else '✓'} ≤ {row.bar:.3f}"
        table.add_row(row.what, value, bar, row.note)
    Console(width=120, highlight=False).print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    found = {"machine": platform.machine(), "rows": [{**asdict(row), "missed": row.missed} for row in rows]}
    (OUT / f"{name}.json").write_text(json.dumps(found, indent=2))
    return not any(row.missed for row in rows)


def ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """Median of the ratios of pairs that were measured next to each other: the machine's drift falls out."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))
