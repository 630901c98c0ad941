"""What a search ends with: a choice, what stands behind it, and how that is said. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.data.dataset import to_add
from compiler.evaluation.accuracy import Comparison
from compiler.evaluation.statistics import Ratio
from compiler.evidence.evidence import Accuracy, Point
from compiler.search.budget import Budget
from compiler.search.choice import Trial, obstacle
from compiler.search.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What a variant ships.

    Attributes:
        ships: the variant goes into the bundle. If not, fp32 goes alone, and ``words`` say why.
        rung: which of the pruned models it is made of; 0 is the whole one.
        keep_float: units that stay in fp32.
        nodes: their nodes, as `compiler.quantization.quantize.lay_out` takes them.
        model: the file that was measured.
        words: for the user, a sentence each.
        refusal: why the compilation must not pass as good: a budget that does not hold, or cannot be shown to.
    """

    variant: str
    ships: bool
    rung: int = 0
    keep_float: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    model: Path | None = None
    points: tuple[Point, ...] = ()
    accuracy: Accuracy | None = None
    time: Ratio | None = None
    words: tuple[str, ...] = ()
    refusal: str | None = None


def named(subject: Subject, keep: frozenset[str]) -> str:
    """How a candidate is called."""
    pruned = f"pruned by {subject.pruned:.0%}, " if subject.pruned else ""
    return f"{pruned}{len(subject.units) - len(keep)} of {len(subject.units)} units quantized"


def points(variant: str, rungs: Sequence[Subject], trials: Iterable[Trial], chosen: Trial | None) -> tuple[Point, ...]:
    """The candidates as evidence."""
    return tuple(
        Point(
            variant=variant,
            name=named(rungs[trial.rung], trial.keep),
            quantized=len(rungs[trial.rung].units) - len(trial.keep),
            units=len(rungs[trial.rung].units),
            pruned=rungs[trial.rung].pruned,
            drop=trial.drop,
            times_fp32=None if trial.time is None else trial.time.median,
            bytes=trial.bytes,
            chosen=trial == chosen,
        )
        for trial in trials
    )


@dataclass(frozen=True)
class Held:
    """What a variant's answers on samples that nothing before has read come to.

    Attributes:
        words: a sentence with the interval and the verdict.
        refusal: that sentence, if a limit that was asked for is not shown to hold.
    """

    accuracy: Accuracy
    words: str
    refusal: str | None


DENSE = "the dense net"  # what a pruned one is held to


def held(variant: str, found: Comparison, budget: Budget, beside: str = "fp32") -> Held:
    """Holds a comparison on the report samples to the budget. A limit that nobody asked for refuses nothing.

    Args:
        beside: what it was compared with, in words.
    """
    verdict = found.judge(budget.aim)
    accuracy = Accuracy(
        variant=variant,
        metric=found.metric,
        samples=found.drop.samples,
        reference=found.reference,
        value=found.value,
        drop=found.drop.points,
        drop_at_most=found.drop.at_most,
        budget=budget.max_drop,
        needs_more=verdict.needs_more,
    )
    words = _accuracy_words(accuracy, budget.aim, beside)
    return Held(accuracy, words, None if verdict.holds or budget.max_drop is None else words)


def _accuracy_words(found: Accuracy, limit: float, beside: str) -> str:
    said = (
        f"{found.variant}: {found.metric} {found.value:.2f} % where {beside} has {found.reference:.2f} %, on "
        f"{found.samples:,} samples that the search never saw: a drop of {found.drop:.2f} points, "
        f"{found.drop_at_most:.2f} at most (95 %)"
    )
    if found.drop_at_most <= limit:
        return f"{said}; within {limit:g}"
    if found.needs_more is None:
        return f"{said}; {limit:g} allowed"
    return (
        f"{said}; that it stays within {limit:g} cannot be shown, needs {found.needs_more:,} more samples "
        f"({to_add(found.needs_more):,} more in --eval, some of which the search takes)"
    )


def time_words(variant: str, subject: Subject, trial: Trial) -> str:
    """A sentence about what was chosen, and its time."""
    said = f"{variant}: {named(subject, trial.keep)}"
    if trial.time is None or trial.ms is None:
        return f"{said}; not timed, this machine cannot run it"
    return (
        f"{said}: {trial.time.median:.2f} of fp32's time ({trial.time.at_most:.2f} at most), {trial.ms:.2f} ms at most"
    )


def why_none(rungs: Sequence[Subject], trials: Sequence[Trial], budget: Budget) -> str:
    """Why nothing was chosen: of the fastest candidate within the drop, else of the one that loses least."""
    if not trials:
        return "there is nothing to quantize"
    within = [t for t in trials if t.refused is None and t.drop <= budget.aim]
    best = min(within, key=lambda t: t.cost) if within else min(trials, key=lambda t: (t.drop, t.cost))
    name = named(rungs[best.rung], best.keep)
    return f"of {len(trials)} candidates the best has {name}, and {obstacle(best, budget)}"
