"""What a compilation found, in rows of words: the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from compiler.evidence.evidence import Accuracy, Evidence, Repair, Timing

_KINDS = {"fuse": "fused", "clip": "clipped", "residual": "additions left in floats", "keep": "kept in floats"}

DENSE = "dense"  # the row of the net that what ships was pruned from

VARIANT_HEAD = (
    "variant",
    "precision",
    "accuracy",
    "lost, at most",
    "time",
    "x fp32, at most",
    "x reference",
    "size",
    "verdict",
)


def hop_rows(evidence: Evidence) -> Iterable[tuple[str, str, str, str]]:
    """Hop, frames, agreement, SQNR: as text."""
    for hop in evidence.hops:
        agreement = "-" if hop.decided is None else f"{hop.same} of {hop.decided}"
        yield hop.name, str(hop.frames), agreement, f"{hop.sqnr_db:.1f} dB (limit {hop.limit_db:.0f})"


def variant_rows(evidence: Evidence) -> Iterable[tuple[str, ...]]:
    """A line for the reference and for each variant, as text; see `VARIANT_HEAD`."""
    for timing in evidence.timings:
        accuracy = next((a for a in evidence.accuracy if a.variant == timing.model), None)
        if timing.model not in evidence.passes:  # torch, or the model file that it all began with
            yield _reference_row(evidence, timing)
            continue
        yield (
            timing.model,
            _precision(evidence, timing.model),
            f"{accuracy.value:.1f} % {accuracy.metric}" if accuracy else "-",
            f"{accuracy.drop:.2f}, {accuracy.drop_at_most:.2f}" if accuracy else "-",
            *_times(timing),
            f"{timing.bytes / 1e6:.1f} MB",
            verdict(evidence, timing.model),
        )


def _reference_row(evidence: Evidence, timing: Timing) -> tuple[str, ...]:
    """What parity is held to; and where that was pruned, what accuracy is held to."""
    dense, pruned = timing.model == DENSE, any(t.model == DENSE for t in evidence.timings)
    accuracy = "-" if pruned and not dense else _reference(evidence.accuracy)
    size = f"{timing.bytes / 1e6:.1f} MB" if dense else ""
    verdict = "before pruning; accuracy is held to it" if dense else "the reference" + (", pruned" if pruned else "")
    return timing.model, "", accuracy, "", *_times(timing), size, verdict


def said_columns(
    head: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[Sequence[str], Sequence[tuple[str, ...]]]:
    """The table without the columns in which nothing is said: a terminal is narrow."""
    kept = [k for k in range(len(head)) if any(row[k] not in ("", "-") for row in rows)]
    return [head[k] for k in kept], [tuple(row[k] for k in kept) for row in rows]


def verdict(evidence: Evidence, variant: str) -> str:
    """What is to be thought of a variant, the worst first."""
    proof = next((p for p in evidence.proofs if p.variant == variant), None)
    if proof is not None and proof.refused:
        return f"refused: {proof.refused}"
    accuracy = next((a for a in evidence.accuracy if a.variant == variant), None)
    if accuracy is not None and accuracy.needs_more is not None:
        return f"cannot be shown, needs {accuracy.needs_more} more samples"
    if accuracy is not None and accuracy.budget is not None and accuracy.drop_at_most > accuracy.budget:
        return f"may lose more than the {accuracy.budget:g} points allowed"
    if (why := evidence.unmeasured.get(variant)) is not None:
        return f"unmeasured here: {why}"
    slower = next((t.times_fp32 for t in evidence.timings if t.model == variant), None)
    mended = ", mended" if any(r.variant == variant for r in evidence.repairs) else ""
    return (
        ("proved here" if proof else "not proved here") + mended + (", slower than fp32" if (slower or 0) > 1 else "")
    )


def _precision(evidence: Evidence, variant: str) -> str:
    """The plan's precision, on which runtime if not the usual one, how much of the graph has it, what was pruned."""
    race = next((race for race in evidence.races if race.variant == variant), None)
    share = evidence.pruned.share if evidence.pruned else 0.0
    on, pruned = f", on {race.backend}" if race else "", f"; {share:.0%} pruned" if share else ""
    return _asked(evidence, variant) + on + pruned


def _asked(evidence: Evidence, variant: str) -> str:
    layers = evidence.layers.get(variant, [])
    asked = evidence.precisions.get(variant) or ("int8" if any(y.requested == "int8" for y in layers) else "")
    if not layers:
        return asked or "-"
    asked = asked or layers[0].requested
    really = sum((layer.real or layer.requested) == asked for layer in layers)
    return f"{asked}, {really} of {len(layers)} layers" if asked != "fp32" else asked


def _reference(accuracy: Sequence[Accuracy]) -> str:
    return f"{accuracy[0].reference:.1f} % {accuracy[0].metric}" if accuracy else "-"


def _times(timing: Timing) -> tuple[str, str, str]:
    """The time, and what it is of fp32's, at most, and of the reference's."""
    if timing.median_ms is None:
        return "-", "-", "-"
    bound = f", {timing.times_fp32_at_most:.2f}" if timing.times_fp32_at_most is not None else ""
    fp32 = "" if timing.times_fp32 is None else f"{timing.times_fp32:.2f}{bound}"
    return f"{timing.median_ms:.2f} ms", fp32, "" if timing.times_torch is None else f"{timing.times_torch:.2f}"


def race_lines(evidence: Evidence) -> Iterator[str]:
    """The variants that are another one's file on a faster runtime, as sentences."""
    for race in evidence.races:
        yield (
            f"{race.variant} is the file of {race.beside} on {race.backend}: {race.times:.2f} of its time, "
            f"{race.times_at_most:.2f} at most"
        )


def mend_lines(repair: Repair) -> Iterator[str]:
    """What was mended and what it cost, as sentences."""
    for mend in repair.mends:
        yield f"{_KINDS[mend.kind]}: {', '.join(mend.where)} ({mend.before_db:.1f} → {mend.after_db:.1f} dB)"
    yield (
        f"{repair.builds} of at most {repair.most_builds} builds; {repair.float_units} of {repair.units} units are in "
        f"floats, {repair.float_share:.0%} of the multiplications"
    )
