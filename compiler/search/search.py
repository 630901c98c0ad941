"""The search: ranks the units, builds and measures what the knapsack proposes, repairs once, confirms once.

Three sets of samples, none in two of them: one ranks the units, one chooses among candidates that were built and
measured, and the last one, which nothing before has read, holds the choice to the budget, once. Without labelled
samples fp32's own answers stand for the truth: then candidates are chosen, and nothing is claimed of their accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from compiler.candidate import Work
from compiler.data.annotations import Box
from compiler.data.dataset import Dataset, Labelled
from compiler.data.samples import Sample
from compiler.evaluation.accuracy import Comparison
from compiler.evaluation.statistics import MIN_BLOCKS, median_at_most, nearly, time_ratio, too_busy
from compiler.search import outcome
from compiler.search.budget import Budget
from compiler.search.choice import Trial, choose, repairs, slow, undecided
from compiler.search.knapsack import Option, proposals
from compiler.search.measure import Measure, measured
from compiler.search.outcome import Outcome, named
from compiler.search.sensitivity import by_macs, gain, settle
from compiler.search.subject import Subject
from skerry.disk import Disk
from skerry.errors import MachineBusy
from skerry.manifest import Detection, Interface
from skerry.wire import Answer

_RANK_ROUNDS = 16
_MAY_DISAGREE = 10.0  # points of fp32's answers, where nothing better is known: as a recipe's limits allow


@dataclass(frozen=True)
class Effort:
    """Seconds of timing, about: for a unit, for a candidate, for the choice."""

    rank_s: float = 0.5
    try_s: float = 1.0
    confirm_s: float = 3.0


@dataclass
class Search:
    """Searches one variant.

    Args:
        rungs: the whole model, and pruned ones if there are any.
        against: what accuracy is held to; None for the first rung in fp32. A net that was pruned before the search is
            held to the dense one, and timed beside itself.
        data: labelled samples, or frames to agree with fp32 on.
        say: hears what is tried and the best so far.

    Attributes:
        trials: the candidates that were measured, and their files.
        options: by rung and unit, what the ranking found.
        saved: by rung, the time that quantizing everything saves, as a share of what is left.
    """

    variant: str
    rungs: Sequence[Subject]
    interface: Interface
    data: Dataset | Sequence[Sample]
    budget: Budget
    work: Work
    disk: Disk
    say: Callable[[str], None]
    effort: Effort = Effort()
    against: Subject | None = None
    trials: dict[Trial, Path] = field(default_factory=dict)
    options: list[list[list[Option]]] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)

    def run(self) -> Outcome:
        """Searches. What was built and measured stays in the work directory, also on Ctrl-C.

        Raises:
            MachineBusy: no time that could be measured decides.
            CompileError: or its kin (skerry/errors.py).
        """
        self.options = [self._rank(subject) for subject in self.rungs]
        self._try_all([pair for number in range(len(self.rungs)) for pair in self._proposed(number)], "candidate")
        damages = [
            {unit.name: option[1].damage for unit, option in zip(subject.units, options, strict=True)}
            for subject, options in zip(self.rungs, self.options, strict=True)
        ]
        self._try_all(repairs(list(self.trials), self._aim, damages), "repaired candidate")
        return self._confirm(choose(list(self.trials), self._aim))

    # --- what the search may see ----------------------------------------------------------------------------------

    @cached_property
    def _measure(self) -> Measure:
        return Measure(self.work, self.disk, self.interface)

    @property
    def _whole(self) -> Path:
        return self.rungs[0].float_model

    @property
    def _aim(self) -> Budget:
        return self.budget if isinstance(self.data, Dataset) else replace(self.budget, max_drop=_MAY_DISAGREE)

    @cached_property
    def _ranking(self) -> list[Sample]:
        return [s.sample for s in self.data.ranking] if isinstance(self.data, Dataset) else list(self.data)

    @cached_property
    def _truth(self) -> list[Labelled]:
        """The samples that choose, and the truth about them."""
        if isinstance(self.data, Dataset):
            return self.data.search
        found = self._measure.answers(self.rungs[0], self._whole, self.data)
        return [_as_truth(sample, said, self.interface) for sample, said in zip(self.data, found, strict=True)]

    def _compare(self, subject: Subject, model: Path, samples: Sequence[Labelled]) -> Comparison:
        return self._measure.compare(self.against or self.rungs[0], subject, model, samples)

    # --- which unit minds -----------------------------------------------------------------------------------------

    def _rank(self, subject: Subject) -> list[list[Option]]:
        """Each unit's options: to stay, or to be quantized."""
        damages = [self._damage(subject, number) for number in range(len(subject.units))]
        gains = self._gains(subject)
        return [
            [Option("fp32", saved, 0.0), Option("int8", 0.0, hurt)] for saved, hurt in zip(gains, damages, strict=True)
        ]

    def _proposed(self, number: int) -> list[tuple[int, frozenset[str]]]:
        """What to build of a rung: the knapsack's proposals, everything quantized, and of a pruned model nothing."""
        names = [unit.name for unit in self.rungs[number].units]
        choices = [(1,) * len(names), (0,) * len(names), *proposals(self.options[number])]
        keeps = [frozenset(n for n, option in zip(names, choice, strict=True) if not option) for choice in choices]
        return [(number, keep) for keep in dict.fromkeys(keeps)]

    def predicted(self, trial: Trial) -> tuple[float, float]:
        """What the ranking would have a candidate be: its time, of its rung's in fp32, and its damage."""
        units = zip(self.rungs[trial.rung].units, self.options[trial.rung], strict=True)
        chosen = [options[unit.name not in trial.keep] for unit, options in units]
        saved = self.saved[trial.rung]  # not the sum of the gains: each of them holds the ways to and from fp32
        return (1.0 + sum(o.time for o in chosen)) / (1.0 + saved), sum(o.damage for o in chosen)

    def _damage(self, subject: Subject, number: int) -> float:
        """Of one unit, quantized alone."""
        unit, count = subject.units[number], len(subject.units)
        self.say(f"{self.variant}: what quantizing {unit.name} alone does, unit {number + 1} of {count}")
        model = subject.build([u.name for u in subject.units if u.name != unit.name], draft=True)
        return self._measure.damage(subject, model, subject.float_model, self._ranking)

    def _gains(self, subject: Subject) -> list[float]:
        """What each unit saves by being quantized, as shares of the whole quantized model's time."""
        if not subject.units:
            self.saved.append(0.0)
            return []
        macs, everything = [unit.macs for unit in subject.units], subject.build((), draft=True)
        both = self._measure.times(subject, [subject.float_model, everything], self.effort.try_s, MIN_BLOCKS)
        self.saved.append(1.0 if both is None else 1.0 / time_ratio(both[1], both[0]).median - 1.0)
        if both is None:
            return by_macs(macs, 1.0)
        found = []
        for number, unit in enumerate(subject.units):
            self.say(f"{self.variant}: what {unit.name} saves, unit {number + 1} of {len(macs)}")
            without = subject.build([unit.name], draft=True)
            times = self._measure.times(subject, [without, everything], self.effort.rank_s, _RANK_ROUNDS)
            assert times is not None  # noqa: S101 - what ran a moment ago runs now
            found.append(gain(*times))
        return settle(found, by_macs(macs, self.saved[-1]))

    # --- candidates -----------------------------------------------------------------------------------------------

    def _try_all(self, wanted: Sequence[tuple[int, frozenset[str]]], what: str) -> None:
        """Builds and measures each; the whole model in fp32 is what they stand beside, and no candidate."""
        wanted = [(n, keep) for n, keep in wanted if n or len(keep) < len(self.rungs[n].units)]
        for count, (number, keep) in enumerate(wanted, 1):
            name = named(self.rungs[number], keep)
            self.say(f"{self.variant}: {what} {count} of {len(wanted)}, {name}{self._best()}")
            model = self.rungs[number].build(keep)
            self.trials[self._trial(number, keep, model)] = model

    def _trial(self, number: int, keep: frozenset[str], model: Path) -> Trial:
        subject, found = self.rungs[number], self._compare(self.rungs[number], model, self._truth)
        beside = self._measure.beside(subject, model, self._whole, self.effort.try_s, self.budget.max_latency_ms)
        return Trial(
            rung=number,
            keep=keep,
            drop=found.drop.points,
            planned=found.planned(len(self.data.report if isinstance(self.data, Dataset) else self.data)),
            time=None if beside is None else beside.ratio,
            ms=None if beside is None else beside.at_most_ms,
            cost=_work_left(subject, keep) if beside is None else beside.ratio.median,
            bytes=model.stat().st_size,
            refused=subject.refused(model),
        )

    def _best(self) -> str:
        best = choose(list(self.trials), self._aim)
        if best is None:
            return ""
        time = "not timed" if best.time is None else f"{best.time.median:.2f} of fp32's time"
        return f"; best so far {named(self.rungs[best.rung], best.keep)}, {time}, {best.drop:.2f} points"

    # --- the verdict ----------------------------------------------------------------------------------------------

    def _confirm(self, chosen: Trial | None) -> Outcome:
        """Times the choice anew: the fastest of many looks faster than it is."""
        if chosen is None:
            for trial in self.trials:
                self._check_decided(trial)
            return self._float(outcome.why_none(self.rungs, list(self.trials), self._aim))
        subject, model, now = self.rungs[chosen.rung], self.trials[chosen], chosen
        self.say(f"{self.variant}: confirming {named(subject, chosen.keep)}")
        limit, seconds = self.budget.max_latency_ms, self.effort.confirm_s
        if beside := self._measure.beside(subject, model, self._whole, seconds, limit, 2 * MIN_BLOCKS):
            now = replace(chosen, time=beside.ratio, ms=beside.at_most_ms)
            self._check_decided(now)
            if why := slow(now, self.budget):
                return self._float(f"timed again, {why}")
        kept = [unit for unit in subject.units if unit.name in chosen.keep]
        return self._held(
            Outcome(
                variant=self.variant,
                ships=True,
                rung=chosen.rung,
                keep_float=tuple(unit.name for unit in kept),
                nodes=tuple(node for unit in kept for node in unit.nodes),
                model=model,
                points=outcome.points(self.variant, self.rungs, self.trials, chosen),
                time=now.time,
                words=(outcome.time_words(self.variant, subject, now),),
            )
        )

    def _held(self, shipped: Outcome) -> Outcome:
        """The choice on samples that the search never saw."""
        if not isinstance(self.data, Dataset):
            said = f"agreement with fp32 on {len(self.data)} frames chose it"
            words = (*shipped.words, f"accuracy of {self.variant}: not shown, there are no labelled samples; {said}")
            return replace(shipped, words=words)
        assert shipped.model is not None  # noqa: S101 - what ships was built
        self.say(f"{self.variant}: {len(self.data.report):,} samples that the search never saw")
        found = self._compare(self.rungs[shipped.rung], shipped.model, self.data.report)
        held = outcome.held(self.variant, found, self.budget, "fp32" if self.against is None else outcome.DENSE)
        if held.accuracy.drop_at_most > self.budget.aim and held.accuracy.needs_more is None:
            return replace(self._float(held.words), accuracy=held.accuracy)
        return replace(shipped, accuracy=held.accuracy, words=(*shipped.words, held.words), refusal=held.refusal)

    def _check_decided(self, trial: Trial) -> None:
        if why := undecided(trial, self._aim):
            raise MachineBusy(f"{self.variant}: {why}")

    def _float(self, why: str) -> Outcome:
        """fp32 alone; refused if it is too slow for the budget itself."""
        refusal, limit = None, self.budget.max_latency_ms
        if limit is not None and (alone := measured(self.rungs[0], [self._whole], self.effort.try_s, MIN_BLOCKS)):
            at_most = median_at_most(alone.times_ms[0])
            if nearly(at_most, limit, alone.had_processor):
                raise MachineBusy(
                    f"{self.variant}: {too_busy(f'{at_most:.2f} ms at most for fp32', alone.had_processor)}"
                )
            if at_most > limit:
                refusal = f"{limit:g} ms cannot be held: fp32 takes {at_most:.2f} at most, and {self.variant}: {why}"
        return Outcome(
            variant=self.variant,
            ships=False,
            points=outcome.points(self.variant, self.rungs, self.trials, None),
            words=(f"{self.variant}: quantizing does not pay here: {why}; ships fp32",),
            refusal=refusal,
        )


def _work_left(subject: Subject, keep: frozenset[str]) -> float:
    """The share of the multiplications that stays in fp32, where nothing can be timed."""
    macs = np.array([unit.macs for unit in subject.units], np.float64)
    kept = np.array([unit.name in keep for unit in subject.units])
    return float((macs * kept).sum() / macs.sum()) * (1.0 - subject.pruned) if macs.sum() else float(kept.mean())


def _as_truth(sample: Sample, said: Sequence[Answer], interface: Interface) -> Labelled:
    """fp32's own answer as the truth: what a device would have been told."""
    post = interface.postprocess
    if isinstance(post, Detection):
        boxes = [Box(a.label, a.box) for a in said if a.box is not None and a.score >= post.min_score]
        return Labelled(sample=sample, boxes=tuple(boxes))
    return Labelled(sample=sample, label=said[0].label if said else None)
