"""``skerry compare``: two bundles on the same frames: accuracy, answers, latency, size, and layer by layer."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compiler.comparison import footage
from compiler.comparison.common_layers import Compared
from compiler.comparison.comparison import Comparison, Side, compare, pick
from compiler.comparison.unpacked import check_comparable, open_for_running
from compiler.comparison.verdicts import apart, bytes_in_words, verdicts
from skerry.errors import UsageError
from skerry.execution.device import this_device
from skerry.execution.parity import CLEAN_DB

_WORST = 5  # values that are named without --layers
_PAGE = 140  # characters of a line that no terminal bounds


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="skerry compare", description="Run two bundles on the same frames and set them side by side."
    )
    p.add_argument("a", type=Path, help="a .skb file or a bundle's folder")
    p.add_argument("b", type=Path, help="the one to hold against it")
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="labelled samples: a folder per class, or images with VOC or COCO boxes; or photos and videos without "
        "labels (default: the frames of the first bundle's proof)",
    )
    p.add_argument("--trust", type=Path, action="append", default=[], metavar="PEM", help="the signer's public key")
    p.add_argument("--unverified", action="store_true", help="compare without asking who built them")
    p.add_argument("--variant-a", metavar="ID", help="of the first (default: the fastest that runs here)")
    p.add_argument("--variant-b", metavar="ID", help="of the second")
    p.add_argument("--frames", type=int, default=2000, metavar="N", help="at most so many (default: 2000)")
    p.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of timing, at most about (default: 20)")
    p.add_argument("--layers", action="store_true", help="list every value that both graphs know by one name")
    p.add_argument("--json", action="store_true", help="print everything as JSON")
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` if the two cannot be compared."""
    options = parser().parse_args(arguments)
    if options.frames < 1 or options.seconds <= 0:
        raise UsageError("--frames and --seconds must be more than 0")
    trust = None if options.unverified else options.trust
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("reading") as status:
        scratch, facts = Path(folder), this_device()
        a, b = open_for_running(options.a, trust, scratch / "a"), open_for_running(options.b, trust, scratch / "b")
        check_comparable(a, b)
        candidates = [(a, a.candidates(options.variant_a, facts)), (b, b.candidates(options.variant_b, facts))]
        frames = footage.read(options.data, a, options.frames)
        status.update(f"timing in turns, at most {options.seconds:g} s")
        picked = pick(candidates, frames.where, options.seconds, scratch)
        found = compare(picked[0], picked[1], frames, scratch, status.update)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _print(Console(highlight=False), found, layers=options.layers)
    return 0


def _print(console: Console, found: Comparison, *, layers: bool) -> None:
    of = f" of {found.found}" if found.found > found.frames else ""
    title = f"{found.frames}{of} frames, one thread, {found.rounds} rounds in turns"
    table = Table("", "a", "b", "b against a", title=title, title_justify="left")
    for row in rows(found):
        table.add_row(*map(Text, row))
    page = console if console.is_terminal else Console(file=console.file, highlight=False, width=_PAGE)
    page.print(table)
    for text in [*verdicts(found), *layer_lines(found.layers, found.no_layers, every=layers)]:
        console.print(text, markup=False, soft_wrap=True)


def rows(found: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """The table: what, a, b, and b against a with its 95 % interval."""
    a, b, ratio = found.a, found.b, found.time_ratio
    yield "release", f"{a.name} {a.release[:12]}", f"{b.name} {b.release[:12]}", _release(a, b)
    yield "variant", _variant(a), _variant(b), ""
    if (points := found.accuracy) is None:
        yield "accuracy", "-", "-", "not measured"
    else:
        against = f"{points.points.value:+.2f} points ({points.points.low:+.2f} to {points.points.high:+.2f})"
        yield f"{points.metric} of {points.samples}", f"{points.a:.2f} %", f"{points.b:.2f} %", against
    yield "answers", "", "", f"{found.agreed.same} of {found.agreed.decided} decided ones agree"
    yield "outputs", "", "", apart(found.sqnr_db)
    yield "own proof", _proof(a), _proof(b), ""
    times = f"{ratio.value:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"
    yield "a frame", f"{a.median_ms:.2f} ms", f"{b.median_ms:.2f} ms", times
    yield "variant's size", bytes_in_words(a.bytes), bytes_in_words(b.bytes), f"{b.bytes / a.bytes:.2f} x"
    yield (
        "bundle's size",
        bytes_in_words(a.bundle_bytes),
        bytes_in_words(b.bundle_bytes),
        f"{b.bundle_bytes / a.bundle_bytes:.2f} x",
    )


def _release(a: Side, b: Side) -> str:
    return "the same release" if a.release == b.release else ""


def _proof(side: Side) -> str:
    """Parity with its own fp32 reference, measured here."""
    if side.proof is None:
        return "did not end"
    said = f"{side.proof.sqnr_db:.1f} dB, {side.proof.same} of {side.proof.decided} answers"
    return f"{'REFUSED' if side.proof.refused else 'proved'}: {said}"


def _variant(side: Side) -> str:
    return f"{side.variant}, {side.precision} on {side.backend}"


def layer_lines(found: Compared | None, why: str | None, *, every: bool) -> Iterator[str]:
    """The values that both graphs know, the worst or all of them; or why there are none."""
    if found is None:
        yield f"layer by layer: not compared, {why}"
        return
    yield f"layer by layer: {len(found.values)} values of {found.known_a} and {found.known_b} are in both graphs"
    if found.values and min(v.sqnr_db for v in found.values) >= CLEAN_DB and not every:
        yield "  all of them bit for bit the same"
        return
    shown = found.values if every else sorted(found.values, key=lambda v: v.sqnr_db)[:_WORST]
    for value in shown:
        asked = f"{value.precision_a} → {value.precision_b}"
        yield f"  {value.sqnr_db:6.1f} dB  {value.layer:<32} {value.kind:<20} {asked}"
    if len(shown) < len(found.values):
        yield "  these are the furthest apart; --layers lists them all in the graph's order"
