"""Two releases on the same frames: what is measured of each, and of the one against the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors.numpy import load_file

from compiler.comparison import contest
from compiler.comparison.common_layers import Compared
from compiler.comparison.contest import Asked
from compiler.comparison.footage import Footage
from compiler.comparison.unpacked import Opened, differences
from compiler.evaluation import accuracy
from compiler.evaluation.accuracy import Answers, Difference
from compiler.evaluation.statistics import Interval, median_interval, share_interval
from skerry.errors import BackendError
from skerry.execution.parity import Agreement, Noise, agree
from skerry.execution.turns import Timed
from skerry.manifest import Detection, Manifest
from skerry.wire import ProofReport

_TIMED_FRAMES = 4
_PICKING = 0.25  # of the timing's time again, to find each bundle's fastest variant
_KEPT_OUTPUTS = 32  # frames whose outputs are compared as numbers
_LAYER_FRAMES = 4
_COMMON = 0.5  # of the smaller graph's values: fewer are no common graph, but names that happen to be the same

Where = list[tuple[str, int]]
Say = Callable[[str], None]


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle, as it was run.

    Attributes:
        bytes: of the variant's files.
        bundle_bytes: of all that the release is, without the evidence.
        proof: of its own proof, run here; null if it did not come back, with ``no_proof`` saying why.
    """

    name: str
    release: str
    variant: str
    precision: str
    backend: str
    bytes: int
    bundle_bytes: int
    median_ms: float
    proof: ProofReport | None = None
    no_proof: str | None = None


class Agreed(msgspec.Struct, frozen=True, kw_only=True):
    """Whether two give the same answers, of those that either is sure of.

    Attributes:
        same, decided: answers.
        frames_same: frames with decided answers, all of which are the same; ``frames`` have any.
        share: of ``frames_same``, in percent, with its exact 95 % interval; null where nothing is decided.
    """

    same: int
    decided: int
    frames_same: int
    frames: int
    share: Interval | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """b against a.

    Attributes:
        found: frames that there were before the limit.
        differ: what the two manifests do not have in common, in words.
        no_accuracy: why ``accuracy`` is null.
        sqnr_db: b's worst output against a's; null if they are not the same tensors.
        time_ratio: b's time over a's, round by round.
        had_processor: share of the timing's time in which it had a processor; much less than 1 on a busy machine.
        layers: null with ``no_layers`` saying why.
    """

    a: Side
    b: Side
    frames: int
    found: int
    differ: list[str]
    agreed: Agreed
    time_ratio: Interval
    rounds: int
    had_processor: float
    accuracy: Difference | None = None
    no_accuracy: str | None = None
    sqnr_db: float | None = None
    layers: Compared | None = None
    no_layers: str | None = None


@dataclass(frozen=True)
class Picked:
    """The variant of a bundle that is run, and its times.

    Attributes:
        had_processor: share of the timing's time in which it had a processor.
    """

    bundle: Opened
    variant: str
    times_ms: list[float]
    had_processor: float


def pick(candidates: Sequence[tuple[Opened, list[str]]], where: Where, seconds: float, scratch: Path) -> list[Picked]:
    """Takes each bundle's fastest variant, then times these two alone, in turns.

    Alone, since whoever always follows the same neighbour finds the caches as that one left them. Each answers one
    frame by itself before: a model that crashes is then known by its name.
    """
    flat = [(bundle, variant) for bundle, variants in candidates for variant in variants]
    for bundle, variant in flat:
        _ask(bundle, variant, where[:1], scratch)
    if len(flat) > len(candidates):
        every = _timed(flat, where, seconds * _PICKING)
        medians = [(statistics.median(times), one) for one, times in zip(flat, every.times_ms, strict=True)]
        flat = [min((m for m in medians if m[1][0] is bundle), key=lambda m: m[0])[1] for bundle, _ in candidates]
    timed = _timed(flat, where, seconds)
    return [Picked(*one, times, timed.had_processor) for one, times in zip(flat, timed.times_ms, strict=True)]


def _timed(entries: Sequence[tuple[Opened, str]], where: Where, seconds: float) -> Timed:
    job = contest.TimeJob([bundle.entry(variant) for bundle, variant in entries], where[:_TIMED_FRAMES], seconds)
    return contest.run(job, Timed, "timing in turns")


def compare(a: Picked, b: Picked, footage: Footage, scratch: Path, say: Say) -> Comparison:
    """Runs both on all frames. Raises `BackendError` if one does not come back."""
    said = []
    for side in (a, b):
        say(f"{side.bundle.who(side.variant)} answers {len(footage.samples)} frames")
        said.append(_ask(side.bundle, side.variant, footage.where, scratch))
    say("their own proofs")
    sides = [_side(side) for side in (a, b)]
    say("layer by layer")
    layers, why = _layers(a, b, footage.where[:_LAYER_FRAMES])
    return Comparison(
        a=sides[0],
        b=sides[1],
        frames=len(footage.samples),
        found=footage.found,
        differ=list(differences((a.bundle, a.variant), (b.bundle, b.variant))),
        agreed=_agreed(a.bundle.manifest, *said),
        time_ratio=median_interval([y / x for x, y in zip(a.times_ms, b.times_ms, strict=True)]),
        rounds=len(a.times_ms),
        had_processor=a.had_processor,
        accuracy=_accuracy(a, b, footage, said),
        no_accuracy=footage.unlabelled,
        sqnr_db=_outputs_apart(a, b, scratch),
        layers=layers,
        no_layers=why,
    )


def _ask(bundle: Opened, variant: str, where: Where, scratch: Path) -> Answers:
    job = contest.AskJob(bundle.entry(variant), where, _KEPT_OUTPUTS, str(_outputs(bundle, variant, scratch)))
    return contest.run(job, Asked, bundle.who(variant)).answers


def _outputs(bundle: Opened, variant: str, scratch: Path) -> Path:
    return scratch / f"{bundle.release}-{variant}.safetensors"


# --- accuracy and answers ------------------------------------------------------------------------------------------


def _accuracy(a: Picked, b: Picked, footage: Footage, said: Sequence[Answers]) -> Difference | None:
    if footage.unlabelled is not None:
        return None
    least = max(_least_score(side) for side in (a, b))
    one, other = ([[y for y in answers if y.score >= least] for answers in each] for each in said)
    return accuracy.difference(a.bundle.manifest, footage.samples, one, other)


def _least_score(side: Picked) -> float:
    """Of the boxes that a variant lists: one whose graph has a threshold in it knows no curve below."""
    manifest = side.bundle.manifest
    post, graph = manifest.postprocess, manifest.variant(side.variant).graph
    if not isinstance(post, Detection):
        return 0.0
    in_graph = graph is not None and graph.answers
    return post.min_score - manifest.proof.limits.min_margin if in_graph else accuracy.LEAST_SCORE


def _agreed(manifest: Manifest, a: Answers, b: Answers) -> Agreed:
    """Each by the first one's threshold and margin."""
    limits, post = manifest.proof.limits, manifest.postprocess
    least = post.min_score - limits.min_margin if isinstance(post, Detection) else 0.0  # as in a proof
    found = [
        agree(manifest, limits, [[y for y in one if y.score >= least]], [[y for y in other if y.score >= least]])
        for one, other in zip(a, b, strict=True)
    ]
    decided = [frame for frame in found if frame.decided]
    alike = sum(frame.same == frame.decided for frame in decided)
    total = Agreement(sum(f.same for f in found), sum(f.decided for f in found))
    return Agreed(
        same=total.same,
        decided=total.decided,
        frames_same=alike,
        frames=len(decided),
        share=share_interval(alike, len(decided)) if decided else None,
    )


def _outputs_apart(a: Picked, b: Picked, scratch: Path) -> float | None:
    """SQNR of b's worst output against a's; None if they are not the same tensors."""
    ours, theirs = (load_file(_outputs(p.bundle, p.variant, scratch)) for p in (a, b))
    if ours.keys() != theirs.keys() or any(ours[k].shape != theirs[k].shape for k in ours):
        return None
    noise = {name.rpartition("/")[0]: Noise() for name in ours}
    for name, value in ours.items():
        noise[name.rpartition("/")[0]].add(value, theirs[name])
    return min(pooled.db() for pooled in noise.values())


# --- each by itself ------------------------------------------------------------------------------------------------


def _side(picked: Picked) -> Side:
    manifest = picked.bundle.manifest
    variant, sizes = manifest.variant(picked.variant), {file.path: file.size for file in manifest.files}
    proof, why = _proof(picked)
    return Side(
        name=f"{manifest.name}@{manifest.version}",
        release=picked.bundle.release,
        variant=variant.id,
        precision=variant.precision,
        backend=variant.backend,
        bytes=sum(sizes[path] for path in variant.files),
        bundle_bytes=sum(sizes.values()),
        median_ms=statistics.median(picked.times_ms),
        proof=proof,
        no_proof=why,
    )


def _proof(picked: Picked) -> tuple[ProofReport | None, str | None]:
    job = contest.ProveJob(picked.bundle.entry(picked.variant))
    try:
        return contest.run(job, ProofReport, picked.bundle.who(picked.variant)), None
    except BackendError as exc:
        return None, str(exc)


# --- layer by layer ------------------------------------------------------------------------------------------------


def _layers(a: Picked, b: Picked, where: Where) -> tuple[Compared | None, str | None]:
    """The values that both graphs know, or why these are not to be compared."""
    entries = [(m.preprocess, m.inputs[0].shape, m.variant(p.variant).graph) for p, m in _manifests(a, b)]
    if entries[0] != entries[1]:
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


def _manifests(*sides: Picked) -> Iterator[tuple[Picked, Manifest]]:
    return ((side, side.bundle.manifest) for side in sides)
