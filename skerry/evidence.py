"""``evidence/compile.json``: what the compiler found out about a release, viewed for showing.

A view: what a later version added is passed over, what an earlier one had not is empty. The compiler's own types
(compiler/evidence/evidence.py) say what each field means; a machine that only inspects has no compiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from skerry.documents import parse
from skerry.errors import FormatError

COMPILED, PLAN = "evidence/compile.json", "evidence/plan.json"


class _Hop(msgspec.Struct, frozen=True):
    name: str
    sqnr_db: float
    limit_db: float | None = None
    same: int | None = None
    decided: int | None = None
    failed: str | None = None


class _Timing(msgspec.Struct, frozen=True):
    model: str
    median_ms: float | None = None
    times_torch: float | None = None
    times_fp32: float | None = None
    times_fp32_at_most: float | None = None


class _Accuracy(msgspec.Struct, frozen=True):
    variant: str
    metric: str
    samples: int
    reference: float
    value: float
    drop: float
    drop_at_most: float
    budget: float | None = None
    needs_more: int | None = None


class _Point(msgspec.Struct, frozen=True):
    variant: str
    name: str
    quantized: int
    units: int
    drop: float
    times_fp32: float | None = None
    chosen: bool = False
    pruned: float = 0.0


class _Layer(msgspec.Struct, frozen=True):
    name: str
    kind: str
    requested: str
    real: str | None = None
    sqnr_db: float | None = None

    @property
    def differs(self) -> bool:
        return self.real is not None and self.real != self.requested


class _Mend(msgspec.Struct, frozen=True):
    kind: str
    where: list[str]
    before_db: float
    after_db: float


class _Repair(msgspec.Struct, frozen=True):
    variant: str
    mends: list[_Mend]


class _Race(msgspec.Struct, frozen=True):
    variant: str
    backend: str
    beside: str
    times: float
    times_at_most: float


class _Proof(msgspec.Struct, frozen=True):
    variant: str
    refused: str | None = None


class _Calibration(msgspec.Struct, frozen=True):
    frames: int
    report_frames: int


class _Pruned(msgspec.Struct, frozen=True):
    words: str = ""


class _Step(msgspec.Struct, frozen=True):
    name: str
    digest: str = ""


class Evidence(msgspec.Struct, frozen=True):
    """The statements, as far as this version knows them."""

    forced: list[str] = []
    assumed: list[str] = []
    hops: list[_Hop] = []
    timings: list[_Timing] = []
    proofs: list[_Proof] = []
    unmeasured: dict[str, str] = {}
    accuracy: list[_Accuracy] = []
    search: list[_Point] = []
    left_out: dict[str, str] = {}
    repairs: list[_Repair] = []
    races: list[_Race] = []
    layers: dict[str, list[_Layer]] = {}
    lineage: dict[str, str] = {}
    passes: dict[str, list[_Step]] = {}
    tools: dict[str, str] = {}
    calibration: _Calibration | None = None
    machine: list[str] = []
    max_latency_ms: float | None = None
    pruned: _Pruned | None = None


def lines(raw: bytes, *, layers: bool) -> Iterator[str]:
    """What the document says, a statement a line; with ``layers`` a line for each of these too."""
    try:
        evidence = parse(raw, Evidence, COMPILED)
    except FormatError as exc:
        yield f"evidence   is there, in a form that this version of Skerry does not know: {exc}"
        return
    yield from (f"FORCED     {text}" for text in evidence.forced)
    yield from (f"assumed    {text}" for text in evidence.assumed)
    if (used := evidence.calibration) is not None:
        yield f"frames     {used.frames} calibrate, {used.report_frames} others judge the hops"
    if evidence.pruned is not None:
        yield f"pruning    {evidence.pruned.words}"
    yield from map(_hop, evidence.hops)
    yield from (f"time       {_time(timing)}" for timing in evidence.timings if timing.median_ms is not None)
    yield from map(_race, evidence.races)
    if evidence.max_latency_ms is not None:
        yield f"time       {evidence.max_latency_ms:g} ms were allowed (--max-latency)"
    yield from (f"unmeasured {variant}: {why}" for variant, why in evidence.unmeasured.items())
    yield from (f"proof      {p.variant} refused where it was built: {p.refused}" for p in evidence.proofs if p.refused)
    yield from map(_accuracy, evidence.accuracy)
    for variant in dict.fromkeys(point.variant for point in evidence.search):
        yield _search(variant, [point for point in evidence.search if point.variant == variant])
    yield from (f"left out   {variant}: {why}" for variant, why in evidence.left_out.items())
    yield from _repairs(evidence.repairs)
    for variant, found in evidence.layers.items():
        yield _layers(variant, found)
        if layers:
            yield from map(_layer, found)
    yield from (f"lineage    {name} {digest[:16]}" for name, digest in evidence.lineage.items())
    for variant, steps in evidence.passes.items():
        yield f"passes     {variant}: " + " → ".join(f"{step.name} {step.digest[:8]}" for step in steps)
    if evidence.machine:
        yield f"built on   {' '.join(evidence.machine)}"
    yield "tools      " + ", ".join(f"{name} {version}" for name, version in evidence.tools.items())


def _hop(hop: _Hop) -> str:
    agreed = f", {hop.same} of {hop.decided} answers agree" if hop.decided is not None else ""
    limit = f" (limit {hop.limit_db:g})" if hop.limit_db is not None else ""
    failed = f"; FAILED: {hop.failed}" if hop.failed else ""
    return f"hop        {hop.name}: {hop.sqnr_db:.1f} dB{limit}{agreed}{failed}"


def _time(timing: _Timing) -> str:
    bound = f" (at most {timing.times_fp32_at_most:.2f})" if timing.times_fp32_at_most is not None else ""
    fp32 = f", {timing.times_fp32:.2f} x fp32{bound}" if timing.times_fp32 is not None else ""
    torch = f", {timing.times_torch:.2f} x torch" if timing.times_torch is not None else ""
    return f"{timing.model}: {timing.median_ms:.2f} ms on one thread{fp32}{torch}"


def _race(race: _Race) -> str:
    return (
        f"beside     {race.variant}: {race.beside}'s file on {race.backend}, {race.times:.2f} x its time "
        f"(at most {race.times_at_most:.2f})"
    )


def _accuracy(a: _Accuracy) -> str:
    budget = f", {a.budget:g} allowed" if a.budget is not None else ""
    more = f"; cannot be shown, needs {a.needs_more} more samples" if a.needs_more is not None else ""
    return (
        f"accuracy   {a.variant}: {a.metric} {a.value:.2f} % on {a.samples} samples, fp32 {a.reference:.2f} %; "
        f"{_lost(a)}{budget}{more}"
    )


def _lost(a: _Accuracy) -> str:
    """The upper end is what counts: a variant that gains on these samples may lose on all."""
    here = f"gains {-a.drop:.2f} points on these, loses" if a.drop < 0 else f"loses {a.drop:.2f} points,"
    return f"{here} at most {a.drop_at_most:.2f} (95 %)"


def _search(variant: str, points: list[_Point]) -> str:
    chosen = next((point for point in points if point.chosen), None)
    if chosen is None:
        return f"search     {variant}: {len(points)} candidates measured, none chosen"
    pruned = f", {chosen.pruned:.0%} pruned" if chosen.pruned else ""
    time = "unmeasured" if chosen.times_fp32 is None else f"{chosen.times_fp32:.2f} x fp32"
    units = f"{chosen.quantized} of {chosen.units} units quantized"
    name = "" if chosen.name == units else f"{chosen.name}, "
    return (
        f"search     {variant}: {len(points)} candidates measured; chosen: {name}{units}{pruned}, {time}, "
        f"{chosen.drop:+.2f} points lost where it searched"
    )


def _repairs(repairs: list[_Repair]) -> Iterator[str]:
    for repair in repairs:
        for mend in repair.mends:
            where = ", ".join(mend.where)
            yield f"mended     {repair.variant}: {mend.kind} {where} ({mend.before_db:.1f} → {mend.after_db:.1f} dB)"


def _layers(variant: str, layers: list[_Layer]) -> str:
    """How many layers of each precision, and which are not what was asked for."""
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(layer.requested for layer in layers).most_common())
    if all(layer.real is None for layer in layers):
        return f"layers     {variant}: {counts} asked; what the runtime builds was not looked at"
    wrong = [f"{y.name} ({y.kind}) asked {y.requested}, runs {y.real}" for y in layers if y.differs]
    return f"layers     {variant}: {counts}; " + ("; ".join(wrong) or "all run as asked")


def _layer(layer: _Layer) -> str:
    error = f"{layer.sqnr_db:6.1f} dB" if layer.sqnr_db is not None else "        -"
    mark = "  ← not as asked" if layer.differs else ""
    return f"  {layer.name:<36} {layer.kind:<20} {layer.requested:<5} {layer.real or '?':<5} {error}{mark}"
