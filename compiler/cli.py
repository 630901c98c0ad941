"""``skerry compile``: reads the request, shows progress, prints one table."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from compiler import plan, prune_cli
from compiler.candidate import Work
from compiler.data import samples
from compiler.evaluation.compare import Hop
from compiler.evidence.evidence import Evidence
from compiler.evidence.tables import VARIANT_HEAD, mend_lines, said_columns, variant_rows
from compiler.host import open_host
from compiler.job import Job
from compiler.pipeline import Compilation
from compiler.quantization import calibrate
from compiler.search import budget
from compiler.sources import recipe
from compiler.targets import target
from compiler.tensorrt import api, preflight
from skerry import signing
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import UsageError
from skerry.execution.device import this_device
from skerry.home import cache_folder, default_key

_MAX_BATCH = 1024
_PAGE = 160  # characters of a line that no terminal bounds
_SMALL = {"frames", "race", "candidate", "answers", "damage", "times"}  # looks and races; the search's, by the hundred
_EXAMPLES = """examples:
  skerry compile my_repo/net.py:build --weights w.pth --calib photos/ --target x86-64 -o net.skb
  skerry compile models/mobilenetv2 --weights mobilenet_v2-b0353104.pth --calib photos/ --calib street.mp4
  skerry compile resnet18.onnx --calib photos/
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="skerry compile",
        description="Compile a torch model into a verified, signed bundle.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "model",
        nargs="?",
        help="a folder with a recipe.toml, file.py:callable that builds the model, or a .onnx or .pt2 file",
    )
    p.add_argument(
        "--weights", type=Path, metavar="FILE", help="state dict (torch.save or .safetensors); never unpickled"
    )
    p.add_argument(
        "--calib",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="photos and videos of what the camera sees; repeatable",
    )
    p.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        help=f"one of {', '.join([target.NATIVE, *target.names()])} (default: native); repeatable",
    )
    p.add_argument(
        "--eval",
        type=Path,
        metavar="DIR",
        help="labelled samples: a folder per class, or images with VOC or COCO boxes",
    )
    prune_cli.add_options(p)
    p.add_argument("--max-drop", metavar="POINTS", help="accuracy that may be lost, of 100; searches for what keeps it")
    p.add_argument("--max-latency", metavar="TIME", help="for one frame on one thread of this machine, such as 5ms")
    p.add_argument(
        "--calibrator",
        choices=calibrate.METHODS,
        default=calibrate.DEFAULT,
        help="how ranges are found (default: %(default)s)",
    )
    p.add_argument(
        "--plan", type=Path, metavar="FILE", help="build what this plan or bundle decided, without searching"
    )
    p.add_argument("--resume", action="store_true", help="go on with the last compilation of --work")
    p.add_argument("-o", "--out", type=Path, metavar="FILE", help="the bundle (default: <name>-<version>.skb)")
    p.add_argument("--name", help="the release's name (default: the recipe's)")
    p.add_argument(
        "--release", type=int, metavar="N", dest="version", help="the release's version, from 1 (default: the recipe's)"
    )
    p.add_argument("--input", metavar="1xCxHxW", help="the model's input, where no recipe says it")
    p.add_argument("--batch", metavar="LOW..HIGH", help="how many images at once the graphs are to take (default: 1)")
    p.add_argument("--labels", type=Path, metavar="FILE", help="one label a line")
    p.add_argument(
        "--key", type=Path, metavar="PEM", help="EC private key to sign with (default: this user's, made on first use)"
    )
    p.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where finished passes are kept, to resume from (default: ~/.cache/skerry)",
    )
    p.add_argument(
        "--keep-slower",
        action="store_true",
        help="ship what is not faster than fp32 here, for devices of another kind (each times what it gets)",
    )
    p.add_argument("--repair", action="store_true", help="mend what is out of tolerance, if it can be")
    p.add_argument(
        "--force", action="store_true", help="package what was refused; the evidence says so, no limit is loosened"
    )
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` for whatever the user can mend."""
    options = parser().parse_args(arguments)
    console, disk, facts = Console(highlight=False), Disk(), this_device()
    work = (options.work or cache_folder(os.environ) / "compile").absolute()
    if options.resume:
        budget.check_alone(vars(options), vars(parser().parse_args([])))
        again = budget.recall(work, Path.cwd())
        _line(console, f"resuming: skerry compile {shlex.join(again)}", "dim")
        return main(again)
    if options.model is None:
        raise UsageError("name what to compile: a recipe's folder, file.py:callable, a .onnx or a .pt2 file")
    limits = budget.budget(options.max_drop, options.max_latency, labelled=options.eval is not None)
    overrides = recipe.Overrides(
        name=options.name,
        version=options.version,
        weights=options.weights,
        shape=_shape(options.input) if options.input else None,
        labels=options.labels,
        batch=_batch(options.batch) if options.batch else None,
    )
    source = recipe.load(options.model, overrides)
    pruning = prune_cli.asked(options, source)
    targets = {name: target.load(name, facts) for name in options.target or [target.NATIVE]}
    for name, wanted in targets.items():
        builds = any(plan.backend == "tensorrt-rtx" for plan in wanted.variant)
        preflight.check_target(name, wanted, tensorrt=api.require("tensorrt-rtx") if builds else None)
    out = options.out or Path(f"{source.recipe.name}-{source.recipe.version}.skb")
    if not out.resolve().parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder; the bundle cannot be written there")
    if not os.access(out.resolve().parent, os.W_OK):
        raise UsageError(f"{out.parent} cannot be written to; name another place with -o")
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name the bundle's file with -o")
    assumed = ["not faster here is no reason to leave out (--keep-slower)"] if options.keep_slower else []
    assumed += [prune_cli.UNTRAINED] if pruning is not None and options.train is None else []
    source = msgspec.structs.replace(source, assumed=[*source.assumed, *assumed])
    for text in source.assumed:
        _line(console, f"assumed: {text}", "yellow")
    job = Job(
        source=source,
        samples=samples.collect(options.calib),
        plans=target.plans(list(targets.values())),
        facts=facts,
        key=_key(options.key, disk, console),
        out=out,
        calibrator=options.calibrator,
        budget=limits,
        labelled=options.eval,
        prune=pruning,
        train=options.train,
        replay=plan.read(options.plan) if options.plan else None,
        keep_slower=options.keep_slower,
        repair=options.repair,
        force=options.force,
    )
    with console.status("starting") as status, open_host(source, status.update) as host:
        tell, clock = _Tell(console, status, lambda: budget.remember(work, Path.cwd(), arguments, disk)), SystemClock()
        evidence = Compilation(job, Work(work, disk, clock, tell), host, disk, tell, clock).run()
    _print(console, evidence, out)
    return 0


class _Tell:
    """Progress on the terminal. ``remember`` is called when the first pass begins: then there is what to resume."""

    def __init__(self, console: Console, status: Status, remember: Callable[[], None]) -> None:
        self._console, self._status, self._remember = console, status, remember
        self._begun = False

    def began(self, name: str) -> None:
        if not self._begun:
            self._begun = True
            self._remember()
        if name not in _SMALL:  # what these are for was said a moment ago, and stays
            self._status.update(name)

    def ended(self, name: str, seconds: float | None) -> None:
        if name in _SMALL:
            return
        took = "done before, resumed" if seconds is None else f"{seconds:.1f} s"
        _line(self._console, f"  {name}: {took}", "dim")

    def detail(self, text: str) -> None:
        self._status.update(text)

    def said(self, text: str) -> None:
        _line(self._console, f"  {text}")

    def hop(self, hop: Hop) -> None:
        mark, style = ("✗", "red") if hop.failed else ("✓", "green")
        _line(self._console, f"  {mark} {hop.name}: {hop.sqnr_db:.1f} dB", style)


def _line(console: Console, text: str, style: str | None = None) -> None:
    """One line as it is: a path that a narrow terminal broke could not be copied, brackets are no markup."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def _key(path: Path | None, disk: Disk, console: Console) -> ec.EllipticCurvePrivateKey:
    if path is not None:
        return signing.load_key(path)
    default = default_key(os.environ)
    if default.is_file():
        return signing.load_key(default)
    _line(console, f"made a signing key for this user: {default} (devices need {default.name}.pub)", "yellow")
    return signing.make_key(disk, default)


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.lower().split("x")]
    except ValueError:
        shape = []
    if len(shape) == 3:
        shape = [1, *shape]
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        raise UsageError(f"--input {text}: expected 1xCxHxW (or 1xHxWxC), for example 1x3x224x224")
    return shape


def _batch(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) <= _MAX_BATCH):
        raise UsageError(f"--batch {text}: expected the least and the most images at once, for example 1..16")
    return int(low), int(high)


def _print(console: Console, evidence: Evidence, out: Path) -> None:
    table = Table(title=f"{evidence.name} @ {evidence.version}, one thread", title_justify="left")
    head, rows = said_columns(VARIANT_HEAD, list(variant_rows(evidence)))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # words, never markup: a refusal may quote a path
    page = console if console.is_terminal else Console(file=console.file, highlight=False, width=_PAGE)
    page.print(table)
    for variant, why in evidence.left_out.items():
        _line(console, f"{variant} is left out: {why}", "yellow")
    for text in evidence.forced:
        _line(console, f"FORCED past: {text}", "bold red")
    for repair in evidence.repairs:
        for text in mend_lines(repair):
            _line(console, f"{repair.variant}: {text}", "yellow")
    for proof in evidence.proofs:
        if proof.refused:
            _line(console, f"{proof.variant} refused: {proof.refused}", "red")
    _line(console, f"signed: {out} ({out.stat().st_size / 1e6:.1f} MB), release {evidence.release[:12]}")
    _line(console, f"evidence: skerry inspect {out}")
