"""Offers: what ships is tried on another runtime too, and goes along for devices that have it, where it wins.

An offer is the very file of the variant that it stands beside; where that one does not ship, it is built as if it stood
alone. It is made only where it can be measured, and nothing that is wrong with it ends a compilation: it is left out,
with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from compiler.candidate import file_digest
from compiler.evaluation.compare import Hop
from compiler.evaluation.statistics import MIN_BLOCKS, Ratio, time_ratio
from compiler.evidence.evidence import Race
from compiler.passes import MODEL
from compiler.search.measure import filled, kept
from compiler.search.subject import time_in_turn
from compiler.targets.target import VariantPlan
from compiler.variants import Variant, Variants
from skerry.errors import BackendError, MachineBusy
from skerry.execution.turns import Timed
from skerry.manifest import Requires

_RACE_S = 6.0
_EXTRAS = {"openvino": "OpenVINO is not installed here (pip install 'skerry[openvino]')"}


class _Lost(Exception):
    """Why an offer is left out."""


@dataclass
class Offers:
    """Makes the offers of one compilation.

    Args:
        hops: all that a variant is held to, here.
        races: takes how much faster those are that ship.

    Attributes:
        held: the hops of those that ship.
    """

    variants: Variants
    hops: Callable[[Variant], Iterable[Hop]]
    races: list[Race]
    held: list[Hop] = field(default_factory=list)

    def beside(self, found: Sequence[Variant]) -> list[Variant]:
        """``found``, which ship, and the offers that do, in the order of the targets."""
        plans = self.variants.passes.job.plans
        made = [self._made(plan, requires, found) for plan, requires in plans if plan.beside is not None]
        order = [plan.id for plan, _ in plans]
        return sorted([*found, *(v for v in made if v is not None)], key=lambda v: order.index(v.plan.id))

    def _made(self, plan: VariantPlan, requires: Requires, found: Sequence[Variant]) -> Variant | None:
        job = self.variants.passes.job
        if job.replay is not None and job.replay.decision(plan.id) is None:
            return None
        why = job.why_unmeasured(plan, requires)
        if why is not None and job.replay is None:
            because = why if plan.backend in job.facts.backends else _EXTRAS.get(plan.backend, why)
            self.variants.left_out[plan.id] = f"{because}; it ships only where it was measured, and won"
            return None
        try:
            return self._held(self._raced(plan, requires, found, here=why is None))
        except BackendError as exc:
            self._leave_out(plan, f"{plan.backend} does not run it: {exc}")
        except (_Lost, MachineBusy) as lost:
            self._leave_out(plan, str(lost))
        return None

    def _raced(self, plan: VariantPlan, requires: Requires, found: Sequence[Variant], *, here: bool) -> Variant | None:
        """The file of the variant that it stands beside, if it is faster; or one of its own."""
        twin = next((v for v in found if v.plan.id == plan.beside), None)
        if twin is None:
            return self.variants.make(plan, requires, found)
        made = replace(twin, plan=plan, requires=requires, here=here, time=None)
        if not here:
            return self.variants.held(made)
        job, (ratio, of_fp32) = self.variants.passes.job, self._race(made, twin)
        if ratio.undecided and not job.keep_slower and job.replay is None:
            raise _Lost(ratio.busy)
        words = f"{ratio.median:.2f} of {twin.plan.id}'s time, {ratio.at_most:.2f} at most"
        if not (ratio.faster or job.keep_slower or job.replay is not None):
            raise _Lost(f"on {plan.backend} the same file takes {words}")
        self.variants.passes.tell.said(f"{plan.id}: the same file on {plan.backend} takes {words}")
        self._remember(made, twin, ratio)
        return self.variants.held(replace(made, time=of_fp32))

    def _remember(self, made: Variant, twin: Variant, ratio: Ratio) -> None:
        self.races.append(
            Race(
                variant=made.plan.id,
                backend=made.plan.backend,
                beside=twin.plan.id,
                times=ratio.median,
                times_at_most=ratio.at_most,
            )
        )

    def _race(self, made: Variant, twin: Variant) -> tuple[Ratio, Ratio]:
        """Its time against the variant beside it, and against fp32. Kept, as all times that decide."""
        variants, fp32 = self.variants, self.variants.exported / MODEL
        models, on = [made.path, twin.path, fp32], [made.plan.backend, twin.plan.backend, "onnxrt"]

        def run(rounds: int) -> Timed:
            return time_in_turn(models, rounds, variants.clock, on)

        def ratio(found: Timed, base: int) -> Ratio:
            return time_ratio(found.times_ms[0], found.times_ms[base], found.had_processor)

        config = {"models": [file_digest(model) for model in models], "on": on, "seconds": _RACE_S}
        time = partial(filled, run, _RACE_S, MIN_BLOCKS)
        found = kept(variants.passes.work, "race", config, time, lambda found: not ratio(found, 1).undecided)
        return ratio(found, 1), ratio(found, 2)

    def _held(self, made: Variant | None) -> Variant | None:
        """An offer on the reference and within the budget, as whatever ships."""
        if made is None:
            return None
        if (refusal := self.variants.refusals.get(made.plan.id)) is not None:
            raise _Lost(refusal)
        hops = list(self.hops(made))
        if failed := next((hop for hop in hops if hop.failed), None):
            raise _Lost(f"{failed.name}: {failed.failed}")
        self.held += hops
        return made

    def _leave_out(self, plan: VariantPlan, why: str) -> None:
        """Nothing of it stays in the evidence but the reason."""
        self.races[:] = [race for race in self.races if race.variant != plan.id]
        self.variants.forget(plan)
        self.variants.left_out[plan.id] = why
        self.variants.passes.tell.said(f"{plan.id} is left out: {why}")
