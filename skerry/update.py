"""The update cycle. Everything that decides what a device runs next is in this file; nothing here does anything.

`TRANSITIONS` is the whole life of an update. `advance` applies one event to the one `Record` that a device keeps, and
`resume` says where each record goes on after the process ended, however it ended. What *entering* a state does is a
second table, in edge_agent/updater.py. The order is always: effect durable, record of the next state, message.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Union

import msgspec

from skerry.errors import IllegalTransition

PROOF_ATTEMPTS = 2  # a proof that did not end in this many unclean runs is refused
PROBATION_BOOTS = 3  # power cuts that a probation survives: a shop that cuts power at night keeps its good releases
PROBATION_EXITS = 1  # unclean exits within one boot that a probation survives
MAX_REJECTED = 64  # oldest forgotten first


class State(str, enum.Enum):
    """Where an update stands."""

    IDLE = "idle"
    FETCHING = "fetching"
    PROVING = "proving"
    SWITCHING = "switching"
    PROBATION = "probation"
    RETURNING = "returning"
    SAFE = "safe"


@dataclass(frozen=True)
class Assigned:
    """The wish names another release."""

    release: str


@dataclass(frozen=True)
class Fetched:
    """The release lies complete and verified in its slot."""


@dataclass(frozen=True)
class Proved:
    """The proof ran here and held; ``variant`` is the fastest that did."""

    variant: str


@dataclass(frozen=True)
class Refused:
    """The proof ran here and did not hold: a verdict on the release."""

    why: str


@dataclass(frozen=True)
class Switched:
    """The target's results leave the device."""


@dataclass(frozen=True)
class Kept:
    """The probation was passed."""


@dataclass(frozen=True)
class Failed:
    """A step did not succeed. ``verdict`` says whether that speaks against the release; a full disk does not."""

    why: str
    verdict: bool = False


class Chosen(msgspec.Struct, frozen=True):
    """A release and the variant of it that proved fastest here."""

    release: str
    variant: str


@dataclass(frozen=True)
class Returned:
    """A release that was kept before is in service again: the last one, or the one before it."""

    to: Chosen


Happening = Union[Assigned, Fetched, Proved, Refused, Switched, Kept, Failed, Returned]

TRANSITIONS: dict[tuple[State, type[Happening]], State] = {
    (State.IDLE, Assigned): State.FETCHING,
    (State.IDLE, Failed): State.RETURNING,  # the release in service does not load any more: docs/decisions/0003
    (State.FETCHING, Fetched): State.PROVING,
    (State.FETCHING, Failed): State.IDLE,  # nothing changed yet: no way back needed
    (State.FETCHING, Assigned): State.FETCHING,
    (State.PROVING, Proved): State.SWITCHING,
    (State.PROVING, Refused): State.IDLE,
    (State.PROVING, Failed): State.IDLE,  # the proof could not be run: docs/decisions/0003
    (State.PROVING, Assigned): State.FETCHING,
    (State.SWITCHING, Switched): State.PROBATION,
    (State.SWITCHING, Failed): State.RETURNING,
    (State.SWITCHING, Assigned): State.RETURNING,
    (State.PROBATION, Kept): State.IDLE,
    (State.PROBATION, Failed): State.RETURNING,
    (State.PROBATION, Assigned): State.RETURNING,
    (State.RETURNING, Returned): State.IDLE,
    (State.RETURNING, Failed): State.SAFE,
    (State.SAFE, Assigned): State.FETCHING,
}


def step(state: State, event: Happening) -> State:
    """The state after ``event``; `IllegalTransition` if the table does not know the pair."""
    try:
        return TRANSITIONS[state, type(event)]
    except KeyError:
        raise IllegalTransition(f"{type(event).__name__} in state {state.value}") from None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that a device remembers of its updates, for one app.

    Attributes:
        target: the release on its way in; None in IDLE and SAFE.
        variant: the target's variant, once it proved.
        active: whose results leave the device.
        good: the release kept last: where a failed update returns to. Equals ``active`` in IDLE.
        previous: the release kept before that one.
        rejected: why, by id of each release on which this device passed a verdict; only an operator takes one out.
        seen_version: the newest wish that was acted on.
        attempt: runs of the target's proof so far.
        boots, exits: power cuts, and unclean exits within one boot, that the target's probation went through.
        boot, run, clean_stop: the boot and process that wrote this, and whether that process said goodbye.
    """

    state: State = State.IDLE
    target: str | None = None
    variant: str | None = None
    active: Chosen | None = None
    good: Chosen | None = None
    previous: Chosen | None = None
    rejected: dict[str, str] = {}
    seen_version: int = 0
    attempt: int = 0
    boots: int = 0
    exits: int = 0
    boot: str = ""
    run: str = ""
    clean_stop: bool = False

    def in_use(self) -> set[str]:
        """The releases that must stay on disk."""
        chosen = {c.release for c in (self.active, self.good, self.previous) if c is not None}
        return chosen | ({self.target} if self.target else set())


def advance(record: Record, event: Happening) -> Record:  # noqa: PLR0911 - one return per event
    """The record after ``event``. Raises `IllegalTransition` as `step` does."""
    after = msgspec.structs.replace(record, state=step(record.state, event))
    match event:
        case Assigned(release) if after.state is State.FETCHING:
            return msgspec.structs.replace(after, target=release, variant=None, attempt=0)
        case Fetched():
            return msgspec.structs.replace(after, attempt=1)
        case Proved(variant):
            return msgspec.structs.replace(after, variant=variant)
        case Switched():
            return msgspec.structs.replace(after, active=_target(record), boots=0, exits=0)
        case Kept():
            previous = record.previous if record.good in (None, record.active) else record.good
            return _without_target(msgspec.structs.replace(after, good=record.active, previous=previous))
        case Refused(why):
            return _without_target(_reject(after, why))
        case Failed(why, verdict):
            after = _reject(after, why) if verdict else after
            if after.state is State.RETURNING:
                return after
            gone = after.state is State.SAFE
            return _without_target(msgspec.structs.replace(after, active=None) if gone else after)
        case Returned(to):
            previous = record.previous if record.previous != to else None
            return _without_target(msgspec.structs.replace(after, active=to, good=to, previous=previous))
    return after


def _target(record: Record) -> Chosen:
    if record.target is None or record.variant is None:
        raise IllegalTransition(f"switched in state {record.state.value} without a proved target")
    return Chosen(record.target, record.variant)


def _without_target(record: Record) -> Record:
    return msgspec.structs.replace(record, target=None, variant=None, attempt=0, boots=0, exits=0)


def _reject(record: Record, why: str) -> Record:
    if record.target is None:
        return record
    kept = [(release, reason) for release, reason in record.rejected.items() if release != record.target]
    return msgspec.structs.replace(record, rejected=dict([*kept, (record.target, why)][-MAX_REJECTED:]))


def resume(record: Record, *, boot: str, run: str) -> Record:
    """Where to go on after the process ended. Total: every record has an answer.

    A crash is told from a power cut by the boot's id: in one boot nothing but the release or this program can have
    ended the process, while a new boot says nothing about either.
    """
    same_boot, clean = record.boot == boot, record.clean_stop
    now = msgspec.structs.replace(record, boot=boot, run=run, clean_stop=False)
    if record.state is State.PROVING and not clean:
        return _prove_again(now)
    if record.state is State.PROBATION and not clean:
        return _crashed(now) if same_boot else _power_cut(now)
    return now  # FETCHING goes on, SWITCHING and RETURNING repeat (their actions are idempotent), IDLE and SAFE stay


def _prove_again(record: Record) -> Record:
    if record.attempt < PROOF_ATTEMPTS:
        return msgspec.structs.replace(record, attempt=record.attempt + 1)
    return advance(record, Refused(f"its proof did not end in {PROOF_ATTEMPTS} attempts"))


def _crashed(record: Record) -> Record:
    if record.exits < PROBATION_EXITS:
        return msgspec.structs.replace(record, exits=record.exits + 1)
    return advance(
        record, Failed(f"the agent crashed {record.exits + 1} times while it was on probation", verdict=True)
    )


def _power_cut(record: Record) -> Record:
    if record.boots < PROBATION_BOOTS:
        return msgspec.structs.replace(record, boots=record.boots + 1, exits=0)
    return advance(record, Failed(f"its probation was cut by {record.boots + 1} reboots"))


def diagram() -> str:
    """The table as a Mermaid state diagram; docs/update-cycle.md holds it, and a test holds it to this."""
    lines = [f"    {a.value} --> {b.value}: {event.__name__}" for (a, event), b in TRANSITIONS.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> idle", *lines])
