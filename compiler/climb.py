"""Which pruned net a release is made from: as measured beside the dense one, never as multiplications promise.

Every rung of the ladder is timed before anything is trained; one that is not beyond doubt faster is none. The others
are fine-tuned, most pruned first, and counted beside the dense net on the samples that the search may see: the first
whose planned drop leaves room for quantization is taken, and no more are trained. If none does, the dense net ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from compiler.candidate import Candidate, file_digest
from compiler.data import dataset
from compiler.data.dataset import Dataset
from compiler.evaluation import statistics
from compiler.evaluation.statistics import SLOWER, Ratio
from compiler.evidence.evidence import Pruned, Rung
from compiler.passes import MODEL
from compiler.pruning.prune import RECORD, Cut, Ladder
from compiler.search.budget import Budget
from compiler.search.measure import Measure
from compiler.search.subject import whole
from skerry.clock import Clock
from skerry.errors import MachineBusy

ROOM = 0.5  # of the budget: what pruning may be planned to lose; the rest is left to quantization
_TIMED_S = 2.0


@dataclass(frozen=True)
class Found:
    """What a climb ends with.

    Attributes:
        evidence: None where nobody asked.
        model: the net to go on with; None for the dense one.
        cut: what makes it again.
    """

    evidence: Pruned | None = None
    model: Candidate | None = None
    cut: Cut | None = None

    @property
    def share(self) -> float:
        """Of the parameters, what is gone."""
        return self.evidence.share if self.evidence else 0.0

    @property
    def lineage(self) -> dict[str, str]:
        """Digests of the record and of what it was fine-tuned on."""
        if self.cut is None:
            return {}
        return {"pruning": self.cut.record} | ({"train": self.cut.tuning.pictures} if self.cut.tuning else {})


@dataclass(frozen=True)
class Climb:
    """One ladder beside one dense net.

    Args:
        dense: its export.
        say: hears what is tried.
        said: hears a sentence for the user, to stay.
    """

    ladder: Ladder
    dense: Path
    data: Dataset
    budget: Budget
    measure: Measure
    clock: Clock
    say: Callable[[str], None]
    said: Callable[[str], None]

    def run(self) -> Found:
        """Down from the most pruned rung that is faster. What was made and measured stays in the work directory.

        Raises:
            MachineBusy: the time of a rung that might be taken decides nothing.
            UserCodeError, CompileError: as `Ladder` does.
        """
        if why := too_few(len(self.data.report), self._room, classifies=self.ladder.interface.task == "classification"):
            self.said(why)
        every = self._cut()
        cut = {ratio: model for ratio, model in every.items() if "nothing" not in model.facts}
        times = {ratio: self._time(ratio, model) for ratio, model in cut.items()}
        rungs = {ratio: _rung(ratio, model, times[ratio]) for ratio, model in cut.items()}
        taken = None
        for ratio in sorted(rungs, reverse=True):
            if times[ratio].undecided:
                raise MachineBusy(f"{ratio:.1%} of the channels pruned: {times[ratio].busy}")
            if not faster(rungs[ratio]):
                continue
            tuned, rungs[ratio] = self._tried(rungs[ratio], cut[ratio])
            self.said(words(rungs[ratio]))
            if obstacle(rungs[ratio], self._room) is None:
                taken, rungs[ratio] = tuned, replace(rungs[ratio], chosen=True)
                break
        nothing = [str(model.facts["nothing"]) for model in every.values() if "nothing" in model.facts]
        self.said(verdict := concluded(list(rungs.values()), self._room, nothing))
        again = None if taken is None else self.ladder.plan(taken)
        return Found(evidence(verdict, self.ladder, taken, list(rungs.values()), self._room), taken, again)

    @property
    def _room(self) -> float:
        return ROOM * self.budget.aim

    def _cut(self) -> dict[float, Candidate]:
        found = {}
        for number, ratio in enumerate(ratios := self.ladder.pruning.ratios, 1):
            self.say(f"pruning {ratio:.1%} of the channels, rung {number} of {len(ratios)}")
            found[ratio] = self.ladder.cut(ratio)
        return found

    def _time(self, ratio: float, model: Candidate) -> Ratio:
        """Beside the dense net, in turns, one thread. Fine-tuning changes numbers and no shape: the time stays."""
        self.say(f"timing the net without {ratio:.1%} of its channels beside the dense one")
        dense = whole(self.dense, self.ladder.work, self.clock)
        beside = self.measure.beside(dense, model / MODEL, self.dense, _TIMED_S)
        assert beside is not None  # noqa: S101 - fp32 runs wherever the compiler does
        return beside.ratio

    def _tried(self, rung: Rung, cut: Candidate) -> tuple[Candidate, Rung]:
        """Fine-tuned, if there is data; and counted on the samples that the search may see."""
        if self.ladder.pruning.fine_tune is not None:
            self.say(f"fine-tuning without {rung.ratio:.1%} of the channels, {rung.times_dense:.2f} of the dense time")
        model = self.ladder.tuned(cut)
        self.say(f"counting {len(self.data.search):,} samples without {rung.ratio:.1%} of the channels")
        dense, pruned = (whole(path, self.ladder.work, self.clock) for path in (self.dense, model / MODEL))
        found = self.measure.compare(dense, pruned, model / MODEL, self.data.search)
        training = model.facts.get("training")
        epoch = training["kept"] if training else None
        return model, replace(rung, epoch=epoch, drop=found.drop.points, planned=found.planned(len(self.data.report)))


def _rung(ratio: float, model: Candidate, time: Ratio) -> Rung:
    return Rung(
        ratio=ratio,
        parameters=tuple(model.facts["parameters"]),
        macs=tuple(model.facts["macs"]),
        times_dense=time.median,
        times_dense_at_most=time.at_most,
        bytes=(model / MODEL).stat().st_size,
    )


def evidence(
    words: str, ladder: Ladder, taken: Candidate | None, rungs: Sequence[Rung] = (), room: float | None = None
) -> Pruned:
    """What is kept of a climb."""
    how = ladder.pruning.fine_tune
    return Pruned(
        words=words,
        room=room,
        rungs=list(rungs),
        record=None if taken is None else file_digest(taken / RECORD),
        share=0.0 if taken is None else 1 - taken.facts["parameters"][1] / taken.facts["parameters"][0],
        train=len(how.train) if how else None,
        held_out=len(how.held_out) if how else None,
        left_out=len(how.left_out) if how else None,
    )


# --- the rules, pure ------------------------------------------------------------------------------------------------


def faster(rung: Rung) -> bool:
    """Whether it may be taken at all: the rule that no variant ships without either."""
    return rung.times_dense_at_most < SLOWER


def obstacle(rung: Rung, room: float) -> str | None:
    """Why a rung is not taken, in words, or None."""
    if not faster(rung):
        return f"less than {SLOWER} of the time would be faster beyond doubt"
    if rung.planned is None:
        return "a more pruned one was taken"
    if rung.planned > room:
        return f"at most {rung.planned:.2f} points could be shown on the samples there are, {room:g} allowed"
    return None


def too_few(report: int, room: float, *, classifies: bool) -> str | None:
    """What is known before anything is trained: that the samples are too few for a net that is only as good."""
    if not classifies or (more := statistics.to_plan(room, report)) == 0:
        return None
    return (
        f"{report:,} samples report: a pruned net that answers each as the dense one does could be planned to lose "
        f"{statistics.planned_drop(0, 0, report, report):.2f} points at most, {room:g} allowed: only one that answers "
        f"better can be taken; for others add {dataset.to_add(more):,} samples to --eval"
    )


def words(rung: Rung) -> str:
    """A rung with its figures."""
    parameters, macs = (1 - after / before for before, after in (rung.parameters, rung.macs))
    said = (
        f"{rung.ratio:.1%} of the channels pruned ({parameters:.0%} of the parameters, {macs:.0%} of the "
        f"multiplications): {rung.times_dense:.2f} of the dense net's time ({rung.times_dense_at_most:.2f} at most)"
    )
    if rung.drop is None or rung.planned is None:
        return said
    trained = "not fine-tuned" if rung.epoch is None else f"fine-tuned, epoch {rung.epoch} kept"
    return f"{said}; {trained}: a drop of {rung.drop:.2f} points on the search's samples, {rung.planned:.2f} planned"


def concluded(rungs: Sequence[Rung], room: float, nothing: Sequence[str] = ()) -> str:
    """The verdict; where the dense net ships, with what stands against each rung."""
    if (taken := next((r for r in rungs if r.chosen), None)) is not None:
        return f"pruned: {words(taken)}; {room:g} allowed"
    why = [f"{words(rung)}; {obstacle(rung, room)}" for rung in rungs] or list(nothing)[:1]
    return f"pruning does not pay here, the dense net ships: {'. '.join(why)}"
