"""What to make of candidates that were built and measured: the front, the repair round, the choice. Pure.

Only what was measured counts here; what `compiler.search.knapsack` predicted does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.evaluation.statistics import SLOWER, Ratio, nearly, too_busy
from compiler.search.budget import Budget

_ALIKE = 1.03  # times this close are one time: then the less damaged candidate is the better one


@dataclass(frozen=True)
class Trial:
    """One candidate that was built and measured.

    Attributes:
        rung: which of the pruned models it is made of; 0 is the whole one.
        keep: the units that stay in fp32.
        drop: points lost on the samples that the search sees.
        planned: the bound of the drop that the report samples will probably confirm.
        time: against the whole model in fp32; None where this machine cannot run it.
        ms: upper end of the interval of its median time; None likewise.
        cost: what is ranked by: the time ratio, or the share of the work that is left in fp32.
        refused: why the recipe's own limits refuse it.
    """

    rung: int
    keep: frozenset[str]
    drop: float
    planned: float
    time: Ratio | None
    ms: float | None
    cost: float
    bytes: int
    refused: str | None = None


def obstacle(trial: Trial, budget: Budget) -> str | None:
    """Why a candidate may not ship, in words, or None."""
    if trial.refused is not None:
        return trial.refused
    if trial.drop > budget.aim:
        return f"it loses {trial.drop:.2f} points, {budget.aim:g} allowed"
    return slow(trial, budget)


def slow(trial: Trial, budget: Budget) -> str | None:
    """Why a candidate is too slow to ship, or None."""
    if trial.time is not None and not trial.time.faster:
        return (
            f"it takes {trial.time.median:.2f} of fp32's time, {trial.time.at_most:.2f} at most; less than "
            f"{SLOWER} would be faster beyond doubt"
        )
    if budget.max_latency_ms is not None and trial.ms is not None and trial.ms > budget.max_latency_ms:
        return f"it takes {trial.ms:.2f} ms at most, {budget.max_latency_ms:g} allowed"
    return None


def undecided(trial: Trial, budget: Budget) -> str | None:
    """Why only a quiet machine can tell whether a candidate may ship, or None if it needs none for that."""
    if trial.refused is not None or trial.drop > budget.aim or trial.time is None or trial.ms is None:
        return None
    had, limit = trial.time.had_processor, budget.max_latency_ms
    if nearly(trial.ms, limit, had):
        return too_busy(f"{trial.ms:.2f} ms at most", had)
    late = limit is not None and trial.ms > limit
    return trial.time.busy if trial.time.undecided and not late else None


def choose(trials: Sequence[Trial], budget: Budget) -> Trial | None:
    """The candidate to confirm: the fastest that will probably be confirmed, else the one with the best chance.

    Choosing the fastest whose drop here is just within the limit would be refuted on fresh samples every other time.
    """
    able = [t for t in trials if obstacle(t, budget) is None]
    likely = [t for t in able if t.planned <= budget.aim]
    if likely:
        return _least_hurt_of_the_fastest(likely)
    if able:
        least = min(t.planned for t in able)
        return _least_hurt_of_the_fastest([t for t in able if t.planned <= least + 1e-9])
    return None


def _least_hurt_of_the_fastest(trials: Sequence[Trial]) -> Trial:
    fastest = min(t.cost for t in trials)
    return min((t for t in trials if t.cost <= fastest * _ALIKE), key=lambda t: (t.planned, t.cost, len(t.keep)))


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other one beats in both time and drop, fastest first."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.cost, t.drop)):
        if not kept or trial.drop < kept[-1].drop:
            kept.append(trial)
    return kept


def repairs(
    trials: Sequence[Trial], budget: Budget, damages: Sequence[dict[str, float]]
) -> list[tuple[int, frozenset[str]]]:
    """One round of repair: of each candidate that is fast enough and hurt too much, the worst unit goes back to fp32.

    As NNCF's ``quantize_with_accuracy_control`` does it, but for one unit each, and all of these are measured.

    Args:
        damages: each unit's damage alone, by rung.

    Returns:
        Rung and the units to keep, for those that were not built yet.
    """
    known = {(t.rung, t.keep) for t in trials}
    found: dict[tuple[int, frozenset[str]], None] = {}
    for trial in trials:
        hurt = trial.refused is not None or trial.planned > budget.aim
        left = [name for name in damages[trial.rung] if name not in trial.keep]
        if hurt and left and slow(trial, budget) is None:
            worst = max(left, key=damages[trial.rung].__getitem__)
            found.setdefault((trial.rung, trial.keep | {worst}))
    return [pair for pair in found if pair not in known]
