"""What a compilation found, as one page that needs nothing but itself.

Every drawing (compiler/evidence/plots.py) has its table below it. A part of the evidence that is empty is left out,
with a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from compiler.evidence import plots
from compiler.evidence.evidence import Accuracy, Evidence, Layer, Point, Rung
from compiler.evidence.layers import unkept
from compiler.evidence.stylesheet import STYLE
from compiler.evidence.tables import VARIANT_HEAD, hop_rows, mend_lines, race_lines, variant_rows
from skerry.wire import ProofReport


def render_html(evidence: Evidence) -> bytes:
    """One self-contained page."""
    parts = [
        f"<h1>{escape(evidence.name)} @ {evidence.version}</h1>",
        f"<p class=dim>release <code>{evidence.release}</code></p>",
        *(f"<p class=bad>FORCED past: {escape(text)}</p>" for text in evidence.forced),
        *(f"<p class=dim>assumed: {escape(text)}</p>" for text in evidence.assumed),
        *_section("Variants", _variants(evidence)),
        *_section("Accuracy", _accuracy(evidence)),
        *_section("Pruning", _pruning(evidence)),
        *_section("Accuracy against latency, every candidate", _search(evidence)),
        *_section("Each hop, held to fp32 torch", _hops(evidence)),
        *_section("Each layer: error and precision", _layers(evidence)),
        *_section("Size", _sizes(evidence)),
        *_section("The release's own proof, run here", _proofs(evidence)),
        *_section("Lineage", _lineage(evidence)),
        *_section("Tools", [_table(("tool", "version"), evidence.tools.items()), _note(_machine(evidence))]),
    ]
    head = f"<meta charset=utf-8><title>{escape(evidence.name)} @ {evidence.version}</title><style>{STYLE}</style>"
    view = "<meta name=viewport content='width=device-width, initial-scale=1'>"
    return "\n".join(["<!doctype html><html lang=en>", head, view, *parts, "</html>", ""]).encode()


def _section(title: str, parts: Iterable[str]) -> Iterator[str]:
    yield f"<section><h2>{escape(title)}</h2>"
    yield from parts
    yield "</section>"


def _variants(evidence: Evidence) -> Iterator[str]:
    yield _table(VARIANT_HEAD, variant_rows(evidence))
    yield from map(_note, race_lines(evidence))
    yield from (_note(f"{variant} is left out: {why}") for variant, why in evidence.left_out.items())
    yield _note(
        "Times on one thread, in turn; ratios are medians over the rounds. The second number of “lost, at most” and of "
        "“x fp32, at most” ends a one-sided 95 % interval."
    )


def _accuracy(evidence: Evidence) -> Iterator[str]:
    if not evidence.accuracy:
        yield _note("Not measured: no labelled data were given (--eval), so nothing is said about accuracy.")
        return
    head = ("variant", "metric", "samples", "fp32", "variant's", "lost", "lost at most", "budget", "needs")
    yield _table(head, (_accuracy_row(a) for a in evidence.accuracy))
    yield _note(
        "in percent and points, sample by sample on samples that the search never saw; “at most” is the upper end of "
        "the paired one-sided 95 % interval, and it is what is held to the budget"
    )


def _accuracy_row(a: Accuracy) -> tuple[str, ...]:
    budget = "-" if a.budget is None else f"{a.budget:g}"
    more = "-" if a.needs_more is None else f"{a.needs_more} more"
    numbers = (f"{a.reference:.2f}", f"{a.value:.2f}", f"{a.drop:.2f}", f"{a.drop_at_most:.2f}")
    return (a.variant, a.metric, str(a.samples), *numbers, budget, more)


def _pruning(evidence: Evidence) -> Iterator[str]:
    found = evidence.pruned
    if found is None:
        yield _note("Nothing was pruned: nobody asked for it (--prune).")
        return
    yield _note(found.words)
    if found.train is not None:
        left = f"; {found.left_out} lie in --eval too and were left out" if found.left_out else ""
        yield _note(f"{found.train} pictures trained, {found.held_out} chose the epoch{left}")
    if found.rungs:
        head = ("channels pruned", "parameters", "multiplications", "x dense, at most", "lost", "planned", "epoch", "")
        yield _table(head, map(_rung_row, found.rungs))
        yield _note(
            "fp32 beside the dense net, in turns; lost on the samples that the search may see, planned is what the "
            "report samples will probably stay below"
        )


def _rung_row(rung: Rung) -> tuple[str, ...]:
    counts = (f"{before:,} → {after:,}" for before, after in (rung.parameters, rung.macs))
    time = f"{rung.times_dense:.2f}, {rung.times_dense_at_most:.2f}"
    lost = ("-", "-") if rung.drop is None else (f"{rung.drop:+.2f}", f"{rung.planned:.2f}")
    epoch = "-" if rung.epoch is None else str(rung.epoch)
    return (f"{rung.ratio:.1%}", *counts, time, *lost, epoch, "chosen" if rung.chosen else "")


def _search(evidence: Evidence) -> Iterator[str]:
    if not evidence.search:
        yield _note("No search was asked for (--max-drop, --max-latency): there are no candidates to compare.")
        return
    fp32_ms = next((t.median_ms for t in evidence.timings if t.model == "fp32"), None)
    limit = evidence.max_latency_ms / fp32_ms if evidence.max_latency_ms and fp32_ms else None
    for variant in dict.fromkeys(p.variant for p in evidence.search):
        points = [p for p in evidence.search if p.variant == variant]
        budget = next((a.budget for a in evidence.accuracy if a.variant == variant), None)
        yield f"<h3>{escape(variant)}</h3>"
        if all(p.times_fp32 is None for p in points):
            yield _note("This machine cannot run its candidates: there is no latency to draw them by.")
        else:
            yield _figure(plots.accuracy_against_latency(points, budget, limit, fp32_ms), _SEARCH_SAYS)
        yield _table(
            ("candidate", "quantized", "pruned", "lost", "time", "size", ""), map(_point_row, points), long=True
        )


_SEARCH_SAYS = (
    "Diamonds are what ships, circles were tried, squares are pruned. Up and to the left is better. The points are "
    "lost on samples that the search may see; the table above tells of those that it never saw."
)


def _point_row(p: Point) -> tuple[str, ...]:
    time = "unmeasured" if p.times_fp32 is None else f"{p.times_fp32:.2f} x fp32"
    numbers = (f"{p.quantized} of {p.units} units", f"{p.pruned:.0%}", f"{p.drop:+.2f}", time)
    return (p.name, *numbers, f"{p.bytes / 1e6:.1f} MB", "chosen" if p.chosen else "")


def _hops(evidence: Evidence) -> Iterator[str]:
    yield _table(("hop", "frames", "answers agree", "SQNR"), hop_rows(evidence))
    yield from (f"<p class=bad>{escape(hop.name)}: {escape(hop.failed)}</p>" for hop in evidence.hops if hop.failed)
    for repair in evidence.repairs:
        yield f"<h3>{escape(repair.variant)} was mended</h3>"
        yield "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in mend_lines(repair)) + "</ul>"


def _layers(evidence: Evidence) -> Iterator[str]:
    if not evidence.layers:
        yield _note("No layer was looked at: no variant differs from the fp32 graph.")
    for variant, layers in evidence.layers.items():
        yield f"<h3>{escape(variant)}</h3>"
        if any(layer.sqnr_db is not None for layer in layers):
            limit = next((hop.limit_db for hop in evidence.hops if hop.name.endswith(f"→ {variant}")), None)
            shown = plots.error_of_each_layer(layers, limit)
            yield _figure(
                shown, "Signal to noise against fp32, of the value behind each layer: errors add up over the depth."
            )
        else:
            yield _note("The layers' errors were not measured.")
        yield _figure(plots.precision_map(layers), _map_says(layers))
        yield _table(("", "layer", "kind", "asked", "real", "SQNR"), _layer_rows(layers), long=True)


def _map_says(layers: Sequence[Layer]) -> str:
    if all(layer.real is None for layer in layers):
        return "Bits of each layer as asked; what the runtime builds of it could not be looked at here."
    wrong = [f"{layer.name} ({layer.kind})" for layer in unkept(layers)]
    return (
        f"Bits of each layer, asked and real. Not as asked (≠): {', '.join(wrong)}."
        if wrong
        else "Bits of each layer, asked and real: the runtime built every layer as asked."
    )


def _layer_rows(layers: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    for count, layer in enumerate(layers, 1):
        real = layer.real or "not looked at"
        differs = " ≠" if layer.real not in (None, layer.requested) else ""
        error = "-" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"
        yield str(count), layer.name, layer.kind, layer.requested, real + differs, error


def _sizes(evidence: Evidence) -> Iterator[str]:
    shown = [t for t in evidence.timings if t.bytes]
    if shown:
        yield _figure(plots.sizes(shown), "Size of each variant's model, and its share of the largest.")
        yield _table(("variant", "bytes"), ((t.model, f"{t.bytes:,}") for t in shown))
    else:
        yield _note("No variant's size is known.")


def _proofs(evidence: Evidence) -> Iterator[str]:
    if not evidence.proofs:
        yield _note("No variant can run on this machine: a device's own proof is the first.")
        return
    head = ("variant", "input", "outputs", "answers agree", "a frame", "memory", "verdict")
    yield _table(head, map(_proof_row, evidence.proofs))


def _proof_row(p: ProofReport) -> tuple[str, ...]:
    noise = (f"{p.input_sqnr_db:.1f} dB", f"{p.sqnr_db:.1f} dB", f"{p.same} of {p.decided}")
    return (p.variant, *noise, f"{p.time_ms:.1f} ms", f"{p.peak_mib:.0f} MiB", p.refused or "proved")


def _lineage(evidence: Evidence) -> Iterator[str]:
    calibration = evidence.calibration
    yield _note(f"{calibration.frames} frames calibrate, {calibration.report_frames} judge")
    if evidence.passes:
        drawing = plots.lineage(evidence.lineage, evidence.passes)
        yield _figure(
            drawing, "From what went in, through the passes, to the variants; the numbers begin each SHA-256."
        )
    steps = {step.key: step for passes in evidence.passes.values() for step in passes}
    rows = [*evidence.lineage.items(), *((f"pass {step.name}", step.digest) for step in steps.values())]
    yield _table(("what", "sha256"), rows)


def _machine(evidence: Evidence) -> str:
    return f"built on {' '.join(evidence.machine)}" if evidence.machine else "the machine is not known"


def _figure(drawing: str, says: str) -> str:
    return f"<figure><div class=wide>{drawing}</div><figcaption>{escape(says)}</figcaption></figure>"


def _note(words: str) -> str:
    return f"<p class=dim>{escape(words)}</p>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, long: bool = False) -> str:
    """``long`` scrolls on a screen; on paper it is whole."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    kind = "wide long" if long else "wide"
    return f"<div class='{kind}'><table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table></div>"
