"""What a compilation found, as tables for the terminal and as one plain page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from compiler.evidence import Evidence


def hop_rows(evidence: Evidence) -> Iterable[tuple[str, str, str, str]]:
    """Hop, frames, agreement, SQNR: as text."""
    for hop in evidence.hops:
        agreement = "-" if hop.decided is None else f"{hop.same} of {hop.decided}"
        yield hop.name, str(hop.frames), agreement, f"{hop.sqnr_db:.1f} dB (limit {hop.limit_db:.0f})"


def timing_rows(evidence: Evidence) -> Iterable[tuple[str, str, str, str]]:
    """Model, latency, ratio, size: as text."""
    for timing in evidence.timings:
        latency = "not measured" if timing.median_ms is None else f"{timing.median_ms:.2f} ms"
        ratios = {"torch": timing.times_torch, "fp32": timing.times_fp32}
        ratio = ", ".join(f"{value:.2f} x {base}" for base, value in ratios.items() if value is not None) or "-"
        yield timing.model, latency, ratio, f"{timing.bytes / 1e6:.1f} MB" if timing.bytes else "-"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.6rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #d8dee6; vertical-align: top }
code { font-size: .85em; overflow-wrap: anywhere } .bad { color: #b3261e; font-weight: 600 } .note { color: #5a6675 }
"""


def render_html(evidence: Evidence) -> bytes:
    """One self-contained page."""
    proofs = [
        (
            p.variant,
            f"{p.input_sqnr_db:.1f} dB",
            f"{p.sqnr_db:.1f} dB",
            f"{p.same} of {p.decided}",
            p.refused or "proved",
        )
        for p in evidence.proofs
    ]
    parts = [
        f"<h1>{escape(evidence.name)} @ {evidence.version}</h1>",
        f"<p class=note>release <code>{evidence.release}</code></p>",
        *(f"<p class=bad>forced: {escape(text)}</p>" for text in evidence.forced),
        *(f"<p class=note>assumed: {escape(text)}</p>" for text in evidence.assumed),
        "<h2>Each hop, held to fp32 torch</h2>",
        _table(("hop", "frames", "answers agree", "SQNR"), hop_rows(evidence)),
        "<h2>Time and size</h2>",
        "<p class=note>one thread, in turn; ratios are medians over rounds</p>",
        _table(("model", "median", "time", "size"), timing_rows(evidence)),
        *(f"<p class=note>{escape(v)}: {escape(why)}</p>" for v, why in evidence.unmeasured.items()),
        "<h2>The release's own proof, run here</h2>",
        _table(("variant", "input", "outputs", "answers agree", "verdict"), proofs),
        "<h2>Lineage</h2>",
        f"<p class=note>{evidence.calibration.frames} frames calibrate, {evidence.calibration.report_frames} judge</p>",
        _table(("what", "sha256"), evidence.lineage.items()),
        "<h2>Tools</h2>",
        _table(("tool", "version"), evidence.tools.items()),
    ]
    head = f"<meta charset=utf-8><title>{escape(evidence.name)}</title><style>{_STYLE}</style>"
    return "\n".join(["<!doctype html><html lang=en>", head, *parts, "</html>", ""]).encode()


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"
