"""The pruned net of one compilation: climbed for, or made again as a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler import climb
from compiler.candidate import Candidate
from compiler.climb import Climb, Found
from compiler.data.dataset import Dataset, Labelled
from compiler.job import Job
from compiler.passes import Passes
from compiler.pruning import training
from compiler.pruning.prune import Cut, FineTune, Ladder, Pruning, Schedule
from compiler.search.measure import Measure
from skerry.clock import Clock
from skerry.errors import PlanError, UsageError
from skerry.manifest import Interface


def found(
    passes: Passes,
    loaded: Candidate,
    dense: Path,
    interface: Interface,
    counted: Sequence[Labelled],
    data: Dataset | None,
    clock: Clock,
) -> Found:
    """The net to go on with, and what is to be said of it.

    Args:
        counted: all samples of ``--eval``: none of them is trained with.

    Raises:
        PlanError: a plan's net does not come out again.
        SkerryError: the training data cannot be used, or the net cannot be pruned.
    """
    job = passes.job
    if job.replay is not None:
        return Found() if job.replay.pruned is None else _again(passes, loaded, interface, job.replay.pruned)
    if job.prune is None:
        return Found()
    if data is None:
        raise UsageError(WANTS_SAMPLES)
    fine_tune = None
    if job.train is not None:
        digests = {labelled.sample.digest for labelled in counted}
        fine_tune = training.read(job.train, interface, digests, Schedule(epochs=job.prune.epochs))
        passes.tell.said(_pictures(job, fine_tune))
    ladder = _ladder(passes, loaded, interface, Pruning(keep=job.prune.keep, fine_tune=fine_tune))
    measure, tell = Measure(passes.work, passes.disk, interface), passes.tell
    return Climb(ladder, dense, data, job.budget, measure, clock, tell.detail, tell.said).run()


WANTS_SAMPLES = (
    "--prune changes what the model says, so something must hold it: name labelled samples with --eval, and with "
    "--max-drop how many points of accuracy it may lose"
)


def _ladder(passes: Passes, loaded: Candidate, interface: Interface, pruning: Pruning) -> Ladder:
    return Ladder(passes.work, passes.host, passes.disk, loaded, interface, passes.graph(), pruning)


def _pictures(job: Job, how: FineTune) -> str:
    out = f"; {len(how.left_out):,} lie in --eval too and are left out" if how.left_out else ""
    return f"--train {job.train}: {len(how.train):,} pictures train, {len(how.held_out):,} choose the epoch{out}"


# --- a plan's net ---------------------------------------------------------------------------------------------------


def _again(passes: Passes, loaded: Candidate, interface: Interface, cut: Cut) -> Found:
    """By the same settings on the same pictures: torch on one thread, seeded, gives the same weights."""
    fine_tune = _same_pictures(passes.job, interface, cut)
    pruning = Pruning(ratios=(cut.ratio,), round_to=cut.round_to, keep=tuple(cut.keep), fine_tune=fine_tune)
    ladder = _ladder(passes, loaded, interface, pruning)
    passes.tell.detail(f"pruning {cut.ratio:.1%} of the channels, as the plan says")
    model = ladder.cut(cut.ratio)
    model = model if "nothing" in model.facts else ladder.tuned(model)
    if "nothing" in model.facts or ladder.plan(model) != cut:
        raise PlanError(
            f"pruning {cut.ratio:.1%} of the channels takes others here than the plan's: this is another kind of "
            "machine; search again on it"
        )
    said = f"{cut.ratio:.1%} of the channels pruned, as the plan says"
    passes.tell.said(said)
    return Found(climb.evidence(said, ladder, model), model, cut)


def _same_pictures(job: Job, interface: Interface, cut: Cut) -> FineTune | None:
    if cut.tuning is None:
        return None
    if job.train is None:
        raise PlanError(
            "the plan's net was fine-tuned after pruning: name the folder of the same pictures with --train"
        )
    fine_tune = training.read(job.train, interface, cut.tuning.left_out, cut.tuning.schedule)
    if fine_tune.digest() != cut.tuning.pictures:
        raise PlanError(
            f"the plan was made for other inputs: train ({cut.tuning.pictures[:12]} in the plan, "
            f"{fine_tune.digest()[:12]} here, {len(fine_tune.train):,} pictures of {job.train}); search again without "
            "--plan"
        )
    return fine_tune
