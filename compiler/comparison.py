"""Two releases on the same frames: what is measured of each, and of the one against the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors.numpy import load_file

from compiler import contest
from compiler.contest import Asked, Compared, Timed
from compiler.labelled import Labelled
from compiler.paired import difference_interval
from compiler.statistics import Interval, median_interval
from compiler.unpacked import Opened
from skerry.errors import BackendError
from skerry.execution.parity import Noise, agree
from skerry.wire import Answer

_TIMED_FRAMES = 4
_KEPT_OUTPUTS = 32  # frames whose outputs are compared as numbers
_LAYER_FRAMES = 4
_COMMON = 0.5  # of the smaller graph's values: fewer are no common graph, but names that happen to be the same

Where = list[tuple[str, int]]


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle, as it was run.

    Attributes:
        hits: right answers, of the labelled frames; null without labels.
        bytes: of the variant's files.
    """

    name: str
    release: str
    variant: str
    precision: str
    bytes: int
    bundle_bytes: int
    median_ms: float
    hits: int | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """b against a.

    Attributes:
        labelled: frames whose label is known; ``accuracy_points`` is b's accuracy less a's on them.
        same, decided: answers of b that are a's, of those that either is sure of.
        sqnr_db: b's outputs against a's; null if they are not the same tensors.
        time_ratio: b's time over a's, round by round.
        layers: null with ``no_layers`` saying why.
    """

    a: Side
    b: Side
    frames: int
    labelled: int
    same: int
    decided: int
    time_ratio: Interval
    rounds: int
    accuracy_points: Interval | None = None
    sqnr_db: float | None = None
    layers: Compared | None = None
    no_layers: str | None = None


@dataclass(frozen=True)
class Picked:
    """The variant of a bundle that is run, and its times."""

    bundle: Opened
    variant: str
    times_ms: list[float]


def pick(candidates: Sequence[tuple[Opened, list[str]]], where: Where, seconds: float, scratch: Path) -> list[Picked]:
    """Times every candidate of every bundle in turns, and takes each bundle's fastest.

    Each answers one frame by itself before: a model that crashes is then known by its name.
    """
    flat = [(bundle, variant) for bundle, variants in candidates for variant in variants]
    for bundle, variant in flat:
        _ask(bundle, variant, where[:1], scratch)
    job = contest.TimeJob([bundle.entry(variant) for bundle, variant in flat], where[:_TIMED_FRAMES], seconds)
    timed = contest.run(job, Timed, "timing the two in turns").times_ms
    picked = [Picked(bundle, variant, times) for (bundle, variant), times in zip(flat, timed, strict=True)]
    return [
        min((p for p in picked if p.bundle is bundle), key=lambda p: statistics.median(p.times_ms))
        for bundle, _ in candidates
    ]


def compare(a: Picked, b: Picked, frames: Sequence[Labelled], scratch: Path) -> Comparison:
    """Runs both on all ``frames``. Raises `BackendError` if one does not come back."""
    where: Where = [(f.path, f.index) for f in frames]
    said_a, said_b = (_ask(p.bundle, p.variant, where, scratch) for p in (a, b))
    manifest = a.bundle.manifest
    agreement = agree(manifest, manifest.proof.limits, said_a, said_b)
    labels = [frame.label for frame in frames]
    hits_a, hits_b = _hits(labels, said_a), _hits(labels, said_b)
    layers, why = _layers(a, b, where[:_LAYER_FRAMES])
    return Comparison(
        a=_side(a, hits_a),
        b=_side(b, hits_b),
        frames=len(frames),
        labelled=len(hits_a),
        same=agreement.same,
        decided=agreement.decided,
        time_ratio=median_interval([y / x for x, y in zip(a.times_ms, b.times_ms, strict=True)]),
        rounds=len(a.times_ms),
        accuracy_points=difference_interval(hits_a, hits_b) if hits_a else None,
        sqnr_db=_outputs_apart(a, b, scratch),
        layers=layers,
        no_layers=why,
    )


def _ask(bundle: Opened, variant: str, where: Where, scratch: Path) -> list[list[Answer]]:
    job = contest.AskJob(bundle.entry(variant), where, _KEPT_OUTPUTS, str(_outputs(bundle, scratch)))
    return contest.run(job, Asked, bundle.who(variant)).answers


def _outputs(bundle: Opened, scratch: Path) -> Path:
    return scratch / f"{bundle.root.name}-{bundle.release[:16]}.safetensors"


def _outputs_apart(a: Picked, b: Picked, scratch: Path) -> float | None:
    """SQNR of b's worst output against a's; None if they are not the same tensors."""
    ours, theirs = (load_file(_outputs(p.bundle, scratch)) for p in (a, b))
    if ours.keys() != theirs.keys() or any(ours[k].shape != theirs[k].shape for k in ours):
        return None
    noise = {name.rpartition("/")[0]: Noise() for name in ours}
    for name, value in ours.items():
        noise[name.rpartition("/")[0]].add(value, theirs[name])
    return min(pooled.db() for pooled in noise.values())


def _hits(labels: Sequence[str | None], answers: Sequence[Sequence[Answer]]) -> list[bool]:
    """Whether the best answer is right, of the frames whose label is known."""
    pairs = zip(labels, answers, strict=True)
    return [bool(said) and said[0].label == label for label, said in pairs if label is not None]


def _side(picked: Picked, hits: Sequence[bool]) -> Side:
    manifest = picked.bundle.manifest
    variant, sizes = manifest.variant(picked.variant), {file.path: file.size for file in manifest.files}
    return Side(
        name=f"{manifest.name}@{manifest.version}",
        release=picked.bundle.release,
        variant=variant.id,
        precision=variant.precision,
        bytes=sum(sizes[path] for path in variant.files),
        bundle_bytes=sum(sizes.values()),
        median_ms=statistics.median(picked.times_ms),
        hits=sum(hits) if hits else None,
    )


def _layers(a: Picked, b: Picked, where: Where) -> tuple[Compared | None, str | None]:
    """The values that both graphs know, or why these are not to be compared."""
    one, other = a.bundle.manifest, b.bundle.manifest
    if (one.preprocess, one.inputs[0].shape) != (other.preprocess, other.inputs[0].shape):
        return None, "they prepare a frame differently: what is inside has no common input"
    job = contest.LayersJob(a.bundle.entry(a.variant), b.bundle.entry(b.variant), where)
    try:
        found = contest.run(job, Compared, "comparing the layers")
    except BackendError as exc:
        return None, str(exc)
    if len(found.values) < _COMMON * min(found.known_a, found.known_b):
        return None, (
            f"the graphs have {found.known_a} and {found.known_b} values and share {len(found.values)} by name and "
            "shape: these are two nets"
        )
    return found, None
