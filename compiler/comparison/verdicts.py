"""What a comparison says of b against a, a sentence each, no farther than its 95 % intervals reach. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.comparison.comparison import Agreed, Comparison, Side
from compiler.evaluation.accuracy import Difference
from compiler.evaluation.statistics import BUSY, Interval, doubt
from skerry.execution.parity import CLEAN_DB


def verdicts(found: Comparison) -> Iterator[str]:
    """The sentences, each after what it is about."""
    yield "b against a, with 95 %:"
    if found.accuracy is not None:
        yield f"  accuracy  {_accuracy(found.accuracy)}{_more_there(found)}"
    else:
        yield f"  accuracy  not measured: {found.no_accuracy}"
    yield f"  answers   {_answers(found.agreed)}"
    yield f"  latency   {_latency(found)}"
    yield f"  size      {_size(found)}"
    yield from (f"  proof     {side}: {text}" for side, text in _proofs(found))
    yield from (f"  differs   {text}" for text in found.differ)


def _accuracy(found: Difference) -> str:
    points, of = found.points, f"{found.metric}, {found.samples} samples"
    if points.high < 0:
        return f"b is {-points.high:.2f} to {-points.low:.2f} points worse ({of})"
    if points.low > 0:
        return f"b is {points.low:.2f} to {points.high:.2f} points better ({of})"
    if points.low == points.high == 0:  # a bootstrap of nothing but zeros has no width, and knows no more for it
        return f"right and wrong in the same places: these samples do not tell the two apart ({of})"
    span = f"between {abs(points.low):.2f} points worse and {points.high:.2f} better"
    more = f"; about {found.needs_more} more like these would tell" if found.needs_more is not None else ""
    return f"cannot be told apart: b is {span} ({of}{more})"


def _more_there(found: Comparison) -> str:
    needs = found.accuracy.needs_more if found.accuracy is not None else None
    if needs is None or found.found == found.frames:
        return ""
    return f"; --data holds {found.found}: --frames {min(found.found, found.frames + needs)}"


def _answers(found: Agreed) -> str:
    if found.share is None:
        return "neither is sure of any: nothing is known"
    span = f"{found.share.low:.1f} to {found.share.high:.1f} %"
    return (
        f"b answers as a in {span} of the frames that either is sure of (seen: {found.frames_same} of {found.frames})"
    )


def _latency(found: Comparison) -> str:
    busy = f"this machine was busy, {found.had_processor:.0%} of a processor was to be had: repeat it when it is idle"
    if found.had_processor >= BUSY:
        return _times(found.time_ratio)
    less, more = found.time_ratio.high * doubt(found.had_processor), found.time_ratio.low / doubt(found.had_processor)
    return f"{_times(found.time_ratio)} ({busy})" if less < 1 or more > 1 else f"nothing can be said: {busy}"


def _times(ratio: Interval) -> str:
    span = f"{ratio.low:.2f} to {ratio.high:.2f} of a's time"
    if ratio.high < 1:
        return f"b is faster: it takes {span}"
    if ratio.low > 1:
        return f"b is slower: it takes {span}"
    return f"cannot be told apart: b takes {span}"


def _size(found: Comparison) -> str:
    a, b = found.a.bytes, found.b.bytes
    if a == b:
        return "as large"
    return f"b's variant is {bytes_in_words(abs(b - a))} {'smaller' if b < a else 'larger'} ({b / a:.2f} of a's)"


def bytes_in_words(count: int) -> str:
    """Megabytes, or kilobytes of little."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _proofs(found: Comparison) -> Iterator[tuple[str, str]]:
    """Of whoever would not be let in by a device like this."""
    for name, side in (("a", found.a), ("b", found.b)):
        if (why := _refused(side)) is not None:
            yield name, f"a device like this one would refuse it: {why}"


def _refused(side: Side) -> str | None:
    return side.no_proof if side.proof is None else side.proof.refused


def apart(sqnr_db: float | None) -> str:
    """How far outputs are apart."""
    if sqnr_db is None:
        return "other tensors"
    if sqnr_db >= CLEAN_DB:
        return "bit for bit the same"
    if sqnr_db <= -CLEAN_DB:
        return "nothing in common (not finite, or no signal)"
    return f"{sqnr_db:.1f} dB"
