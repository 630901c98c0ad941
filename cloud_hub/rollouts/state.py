"""A rollout's life, as a table: all that decides what a rollout is and which devices it speaks to. Pure.

The shell around it stores a `Rollout` with each step, so that (rollout, step) can be taken only once, and publishes
what `wishes` says; a hub that was killed reads the row and goes on.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Union

import msgspec

from skerry.errors import IllegalTransition


class State(enum.StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    ASKING = "asking"
    TAKING_BACK = "taking back"
    DONE = "done"
    TAKEN_BACK = "taken back"
    ABORTED = "aborted"


@dataclass(frozen=True)
class Started:
    """An operator opened the first wave."""

    by: str


@dataclass(frozen=True)
class WavePassed:
    """Every device of the open waves that counts has shown that it runs the release; there is another wave."""

    numbers: str


@dataclass(frozen=True)
class Finished:
    """The last wave has passed."""

    numbers: str


@dataclass(frozen=True)
class Undecided:
    """The clock ran out, and the evidence says neither yes nor no: a person must."""

    missing: str


@dataclass(frozen=True)
class Paused:
    """An operator wants no further wave for now."""

    by: str


@dataclass(frozen=True)
class Resumed:
    """An operator lets the open wave go on, with a new clock."""

    by: str


@dataclass(frozen=True)
class Harmed:
    """Devices showed that the release is bad there."""

    because: str


@dataclass(frozen=True)
class ToldBack:
    """An operator takes the release back."""

    by: str


@dataclass(frozen=True)
class AllBack:
    """Every device that could be reached runs what it ran before; the wish stands for the others."""

    numbers: str


@dataclass(frozen=True)
class Aborted:
    """An operator ended it: who has the release keeps it, nobody else gets it."""

    by: str


Happening = Union[Started, WavePassed, Finished, Undecided, Paused, Resumed, Harmed, ToldBack, AllBack, Aborted]

TRANSITIONS: dict[tuple[State, type[Happening]], State] = {
    (State.DRAFT, Started): State.RUNNING,
    (State.DRAFT, Aborted): State.ABORTED,
    (State.RUNNING, WavePassed): State.RUNNING,
    (State.RUNNING, Finished): State.DONE,
    (State.RUNNING, Undecided): State.ASKING,
    (State.RUNNING, Paused): State.ASKING,
    (State.RUNNING, Harmed): State.TAKING_BACK,
    (State.RUNNING, ToldBack): State.TAKING_BACK,
    (State.RUNNING, Aborted): State.ABORTED,
    (State.ASKING, Resumed): State.RUNNING,
    (State.ASKING, Harmed): State.TAKING_BACK,  # who has the release may still show harm while a person is asked
    (State.ASKING, ToldBack): State.TAKING_BACK,
    (State.ASKING, Aborted): State.ABORTED,
    (State.TAKING_BACK, AllBack): State.TAKEN_BACK,
    (State.DONE, ToldBack): State.TAKING_BACK,
}

# States with a clock: something must have happened by then. The others wait for a person, or are at rest.
CLOCKED = frozenset({State.RUNNING, State.TAKING_BACK})


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, as it is stored.

    Attributes:
        waves: device ids, in the order in which they are offered the release; a device is in one wave.
        before: by device, the release that it ran when the rollout was drafted; null if it ran none.
        clock_s: how long a wave, or the taking back, may take until a person is asked.
        wave: the newest open wave, from 0; -1 before the first one opens.
        step: how many steps it took; with the id, the name of a step that can be taken once.
        due_ms: when its clock runs out, UTC; null if it has none.
    """

    id: str
    app: str
    release: str
    waves: tuple[tuple[str, ...], ...]
    before: dict[str, str | None]
    clock_s: int
    state: State = State.DRAFT
    wave: int = -1
    step: int = 0
    since_ms: int = 0
    due_ms: int | None = None

    @property
    def is_last_wave(self) -> bool:
        return self.wave == len(self.waves) - 1


def step(state: State, event: Happening) -> State:
    """The state after ``event``; `IllegalTransition` if the table does not know the pair."""
    try:
        return TRANSITIONS[state, type(event)]
    except KeyError:
        raise IllegalTransition(f"{type(event).__name__} in a rollout that is {state.value}") from None


def advance(rollout: Rollout, event: Happening, now_ms: int) -> Rollout:
    """The rollout after ``event``.

    Raises:
        IllegalTransition: the table does not know the pair, or there is no further wave to open.
    """
    state = step(rollout.state, event)
    if isinstance(event, WavePassed) and rollout.is_last_wave:
        raise IllegalTransition("WavePassed behind the last wave")
    return msgspec.structs.replace(
        rollout,
        state=state,
        wave=rollout.wave + isinstance(event, (Started, WavePassed)),
        step=rollout.step + 1,
        since_ms=now_ms,
        due_ms=now_ms + rollout.clock_s * 1000 if state in CLOCKED else None,
    )


def offered(rollout: Rollout) -> tuple[str, ...]:
    """The devices that were told to run the release so far, wave by wave."""
    return tuple(device for wave in rollout.waves[: rollout.wave + 1] for device in wave)


def wishes(rollout: Rollout) -> dict[str, str | None]:
    """What each device that it speaks to should run. Taking back names the release before, never a command."""
    back = rollout.state in (State.TAKING_BACK, State.TAKEN_BACK)
    return {device: rollout.before.get(device) if back else rollout.release for device in offered(rollout)}


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/rollouts.md."""
    lines = ["stateDiagram-v2", "    [*] --> draft"]
    lines += [
        f"    {before.value.replace(' ', '_')} --> {after.value.replace(' ', '_')}: {event.__name__}"
        for (before, event), after in TRANSITIONS.items()
    ]
    return "\n".join(lines)
