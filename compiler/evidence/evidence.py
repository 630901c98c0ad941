"""What a compilation found out about a release: statements, each with its numbers, that travel in the bundle."""

from __future__ import annotations

from typing import Literal

import msgspec

from compiler.candidate import Step
from compiler.evaluation.compare import Hop
from skerry.wire import ProofReport


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One thread, torch eager and every variant in turn; ratios are medians of per-round ratios.

    Attributes:
        times_fp32_at_most: upper end of the one-sided 95 % interval of ``times_fp32``.
    """

    model: str
    median_ms: float | None
    times_torch: float | None
    times_fp32: float | None
    bytes: int
    times_fp32_at_most: float | None = None


class Race(msgspec.Struct, frozen=True, kw_only=True):
    """One file on two runtimes, on one thread and in turn: a variant, and the one that it stands beside.

    Attributes:
        backend: the variant's runtime.
        times: of the other's time, median of the paired ratios.
        times_at_most: upper end of the one-sided 95 % interval.
    """

    variant: str
    backend: str
    beside: str
    times: float
    times_at_most: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames it was: ``digest`` names the calibration set."""

    digest: str
    frames: int
    report_frames: int


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How one variant answers labelled samples that the search never saw, beside the fp32 reference, sample by sample.

    Attributes:
        metric: "top-1" or "AP50", in percent.
        drop: points lost against the reference on these samples.
        drop_at_most: upper end of the one-sided 95 % interval of the paired drop; this is what is held to the budget.
        needs_more: how many more samples could show that the budget holds; null if the verdict stands without them.
    """

    variant: str
    metric: str
    samples: int
    reference: float
    value: float
    drop: float
    drop_at_most: float
    budget: float | None = None
    needs_more: int | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate that the search built and measured.

    Attributes:
        quantized: how many of its fusion units are quantized, of ``units``.
        pruned: share of the parameters that were taken out.
        drop: points of accuracy lost on the samples that the search may see; without labelled samples, of agreement
            with fp32.
        times_fp32: median of the paired time ratios to the fp32 model; null where this machine cannot run it.
        chosen: it is what the variant ships.
    """

    variant: str
    name: str
    quantized: int
    units: int
    pruned: float = 0.0
    drop: float
    times_fp32: float | None
    bytes: int
    chosen: bool = False


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of one variant, named as the user's model names it.

    Attributes:
        kind: the ONNX operator.
        requested: precision that the plan asked for: fp32, fp16, int8.
        real: what the runtime says that it built; null where nothing could look.
        sqnr_db: its output against fp32; null if not measured.
    """

    name: str
    kind: str
    requested: str
    real: str | None = None
    sqnr_db: float | None = None


class Mend(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that --repair did to a variant that was out of tolerance, and kept because it helped.

    Attributes:
        kind: "fuse" a layer normalization, "clip" a range, keep "residual" additions in floats, or "keep" whole units.
        where: the nodes, or for "clip" the values, that it was done to.
        before_db, after_db: SQNR of the hop.
    """

    kind: Literal["fuse", "clip", "residual", "keep"]
    where: list[str]
    before_db: float
    after_db: float


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What it took to bring a variant back into tolerance.

    Attributes:
        builds: how many models were built and measured on the way, of at most ``most_builds``.
        float_units, units: fusion units that stay in floats, of all.
        float_share: their share of the multiply-accumulates: what the mending costs in speed, at most.
    """

    variant: str
    mends: list[Mend]
    builds: int
    most_builds: int
    float_units: int
    units: int
    float_share: float


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One pruned net that was built, beside the dense one; both in fp32.

    Attributes:
        ratio: share of the channels that each layer was to lose.
        parameters, macs: before and after.
        times_dense, times_dense_at_most: median of the paired time ratios to the dense net, and the upper end of its
            one-sided 95 % interval.
        epoch: whose weights were kept, 0 being before any; null: it was not fine-tuned.
        drop: points lost against the dense net on the samples that the search may see; null: not counted.
        planned: the bound of that drop that the report samples will probably stay below.
        chosen: it is what the release is made from.
    """

    ratio: float
    parameters: tuple[int, int]
    macs: tuple[int, int]
    times_dense: float
    times_dense_at_most: float
    bytes: int
    epoch: int | None = None
    drop: float | None = None
    planned: float | None = None
    chosen: bool = False


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of ``--prune``.

    Attributes:
        words: the verdict, as a sentence.
        room: points of planned drop that a rung may have.
        record: digest of the pruning record; null: the dense net ships.
        share: of the parameters, what is gone from what ships.
        train, held_out, left_out: how many pictures trained, chose the epoch, and were not taken because accuracy is
            counted on them; null: there were none to train with.
    """

    words: str
    room: float | None = None
    rungs: list[Rung] = []
    record: str | None = None
    share: float = 0.0
    train: int | None = None
    held_out: int | None = None
    left_out: int | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Statements about one release.

    Attributes:
        forced: refusals that --force overrode, in words. Empty for an honest release.
        assumed: what the user did not say.
        unmeasured: why, by variant that this machine cannot run.
        lineage: digests of the code, the weights and the recipe, and each variant's passes.
        left_out: why, by variant that was built and does not ship.
        layers: by variant, in the graph's order.
        precisions: by variant, the plan's.
        max_latency_ms: what was asked for with --max-latency.
        repairs: of the variants that were mended.
        races: of the variants that ship beside another one because their runtime is faster.
        pruned: null where nobody asked for it.
    """

    release: str
    name: str
    version: int
    hops: list[Hop]
    timings: list[Timing]
    proofs: list[ProofReport]
    forced: list[str]
    assumed: list[str]
    unmeasured: dict[str, str]
    calibration: Calibration
    lineage: dict[str, str]
    passes: dict[str, list[Step]]
    tools: dict[str, str]
    machine: list[str]
    accuracy: list[Accuracy] = []
    search: list[Point] = []
    left_out: dict[str, str] = {}
    layers: dict[str, list[Layer]] = {}
    repairs: list[Repair] = []
    races: list[Race] = []
    precisions: dict[str, str] = {}
    max_latency_ms: float | None = None
    pruned: Pruned | None = None
