"""Rollouts in the store.

The table and the judge decide; each step, with the wishes that follow from it, is one transaction that can be taken
once, so that a hub that is killed anywhere goes on where the rows are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from cloud_hub.devices import Row, wish
from cloud_hub.registry import Release
from cloud_hub.rollouts.evidence import evidence, is_back
from cloud_hub.rollouts.judge import (
    Ask,
    DeviceEvidence,
    GoOn,
    Policy,
    Standing,
    TakeBack,
    Verdict,
    judge,
    standing,
)
from cloud_hub.rollouts.plan import plan
from cloud_hub.rollouts.state import (
    Aborted,
    AllBack,
    Finished,
    Happening,
    Harmed,
    Paused,
    Resumed,
    Rollout,
    Started,
    State,
    ToldBack,
    Undecided,
    WavePassed,
    advance,
    offered,
    wishes,
)
from cloud_hub.store import Store
from cloud_hub.tables import devices, rollouts, steps
from skerry.clock import Clock
from skerry.disk import Reached
from skerry.errors import Conflict, IllegalTransition, NotFound, UsageError
from skerry.messages import Reported
from skerry.wire import MAIN_APP, Wish

_log = logging.getLogger(__name__)

_OPEN = (State.RUNNING, State.ASKING, State.TAKING_BACK)  # who is in one of these speaks to devices
_ACTIONS: dict[str, type[Started | Paused | Resumed | ToldBack | Aborted]] = {
    "start": Started,
    "pause": Paused,
    "resume": Resumed,
    "take-back": ToldBack,
    "abort": Aborted,
}


@dataclass(frozen=True)
class Step:
    """A line of the decision log."""

    step: int
    at_ms: int
    event: str
    state: str
    wave: int
    why: str


@dataclass(frozen=True)
class View:
    """A rollout as it stands: what is stored, and what the judge sees at this moment."""

    rollout: Rollout
    policy: Policy
    log: list[Step]
    evidence: dict[str, DeviceEvidence]
    standing: dict[str, Standing]
    verdict: Verdict | None


class Rollouts:
    """Makes, drives and shows rollouts."""

    def __init__(self, store: Store, clock: Clock, reached: Reached) -> None:
        self._store, self._clock, self._reached = store, clock, reached

    # What operators do

    def draft(self, release: Release, targets: Sequence[Row], canary: str, waves: Sequence[str], policy: Policy) -> int:
        """A rollout that has not started. Devices that are there come first, so that no canary is absent.

        Raises:
            UsageError: no devices, or sizes that are none.
        """
        usable = [row for row in targets if row.revoked_ms is None]
        if not usable:
            raise UsageError("no device is meant; name a group that has some, or enrol devices first")
        now = self._clock.utc().ms
        ordered = [row.id for row in sorted(usable, key=lambda row: not row.online)]
        cut = plan(ordered, canary, waves)
        if not cut:
            raise UsageError("these sizes reach no device; give --canary or --waves more")
        rollout = Rollout(
            id="", app=MAIN_APP, release=release.id, waves=cut, before={}, clock_s=policy.clock_s, since_ms=now
        )

        def insert(connection: sa.Connection) -> int:
            values = {"created_ms": now, "state": rollout.state.value, "policy": msgspec.json.encode(policy)}
            made = connection.execute(sa.insert(rollouts).values(**values, body=b""))
            number = int(made.inserted_primary_key[0])  # type: ignore[index] # an insert of one row has one
            body = msgspec.json.encode(msgspec.structs.replace(rollout, id=str(number)))
            connection.execute(sa.update(rollouts).where(rollouts.c.id == number).values(body=body))
            return number

        return self._store.write(insert)

    def act(self, number: int, action: str, by: str) -> None:
        """An operator's word.

        Raises:
            UsageError: no such action.
            NotFound: no such rollout.
            Conflict: not in the state in which it is.
        """
        if action not in _ACTIONS:
            raise UsageError(f"{action[:40]!r} is no action; expected one of {', '.join(_ACTIONS)}")
        event = _ACTIONS[action](by)
        try:
            self._store.write(lambda connection: self._act(connection, number, event))
        except IllegalTransition as exc:
            raise Conflict(f"rollout {number} cannot {action} now: {exc}") from exc

    def _act(self, connection: sa.Connection, number: int, event: Happening) -> None:
        rollout, _ = _load(connection, number)
        if isinstance(event, Started):
            mine = {device for wave in rollout.waves for device in wave}
            _refuse_overlap(connection, rollout, mine)
            rows = connection.execute(sa.select(devices).where(devices.c.id.in_(mine))).all()
            before = {row.id: _runs(row, rollout.app) for row in rows}
            rollout = msgspec.structs.replace(rollout, before=before)
        self._take(connection, rollout, event)

    # What happens by itself

    def tick(self) -> int:
        """Looks at every open rollout once; returns how many took a step."""
        query = sa.select(rollouts.c.id).where(rollouts.c.state.in_([s.value for s in _OPEN])).order_by(rollouts.c.id)
        numbers = self._store.read(lambda connection: connection.execute(query).scalars().all())
        return sum(self._look(number) for number in numbers)

    def _look(self, number: int) -> bool:
        view = self.view(number)
        event = decide(view, self._clock.utc().ms)
        if event is None:
            return False
        name = type(event).__name__.lower()
        self._reached(f"{name}-before-commit")

        def take(connection: sa.Connection) -> bool:
            now, _ = _load(connection, number)
            if now.step != view.rollout.step:
                return False  # an operator was faster
            self._take(connection, now, event)
            self._reached(f"{name}-in-transaction")
            return True

        taken = self._store.write(take)
        self._reached(f"{name}-after-commit")
        return taken

    def _take(self, connection: sa.Connection, rollout: Rollout, event: Happening) -> None:
        """Stores a step: the log's line, the rollout after it, and every wish that it changes."""
        now = self._clock.utc().ms
        after = advance(rollout, event, now)
        ((field, said),) = vars(event).items()
        why = f"by {said}" if field == "by" else said
        line = {
            "rollout": int(rollout.id),
            "step": after.step,
            "at_ms": now,
            "event": type(event).__name__,
            "state": after.state.value,
            "wave": after.wave,
            "why": why,
        }
        connection.execute(sa.insert(steps).values(**line))
        values = {"state": after.state.value, "due_ms": after.due_ms, "body": msgspec.json.encode(after)}
        connection.execute(sa.update(rollouts).where(rollouts.c.id == int(rollout.id)).values(**values))
        if after.state is not State.ABORTED:
            for device, release in wishes(after).items():
                back = release != rollout.release
                previous = None if back else after.before.get(device)
                wanted = Wish(release=release, previous=previous) if release is not None else None
                wish(connection, device, after.app, wanted)
        _log.info("rollout %s: %s: %s", rollout.id, after.state.value, why)

    # What can be seen

    def all(self) -> list[tuple[Rollout, int]]:
        """Every rollout, newest first, with the time at which it was made."""
        query = sa.select(rollouts).order_by(rollouts.c.id.desc())
        rows = self._store.read(lambda connection: connection.execute(query).all())
        return [(msgspec.json.decode(row.body, type=Rollout), row.created_ms) for row in rows]

    def view(self, number: int) -> View:
        """One rollout, with the judge's view of it now. Raises `NotFound`."""
        return self._store.read(lambda connection: self._view(connection, number))

    def _view(self, connection: sa.Connection, number: int) -> View:
        rollout, policy = _load(connection, number)
        now = self._clock.utc().ms
        log = connection.execute(sa.select(steps).where(steps.c.rollout == number).order_by(steps.c.step)).all()
        members = {device for wave in rollout.waves for device in wave}
        rows = connection.execute(sa.select(devices).where(devices.c.id.in_(members))).all()
        found = {
            row.id: evidence(row.id, rollout.app, rollout.release, _reported(row), _heard_ms(row), now) for row in rows
        }
        found = {device: found[device] for wave in rollout.waves for device in wave if device in found}
        if rollout.state is State.TAKING_BACK:
            verdict = _all_back(rollout, rows, policy, now)
        elif rollout.state in (State.RUNNING, State.ASKING):
            ran_out = rollout.due_ms is not None and now >= rollout.due_ms
            verdict = judge(rollout.waves[: rollout.wave + 1], found, policy, clock_ran_out=ran_out)
        else:
            verdict = None
        return View(
            rollout,
            policy,
            [Step(s.step, s.at_ms, s.event, s.state, s.wave, s.why) for s in log],
            found,
            {device: standing(seen, policy) for device, seen in found.items()},
            verdict,
        )


def decide(view: View, now_ms: int) -> Happening | None:
    """The step that a look at a rollout leads to."""
    rollout, verdict = view.rollout, view.verdict
    if rollout.state is State.TAKING_BACK:
        ran_out = rollout.due_ms is not None and now_ms >= rollout.due_ms
        if isinstance(verdict, GoOn) or (ran_out and verdict is not None):
            return AllBack(_words(verdict))
        return None
    if isinstance(verdict, TakeBack):
        return Harmed(verdict.because)
    if rollout.state is not State.RUNNING:
        return None
    if isinstance(verdict, GoOn):
        return Finished(verdict.numbers) if rollout.is_last_wave else WavePassed(verdict.numbers)
    return Undecided(verdict.missing) if isinstance(verdict, Ask) else None


def _words(verdict: Verdict) -> str:
    return str(next(iter(vars(verdict).values())))


def _all_back(rollout: Rollout, rows: Sequence[Row], policy: Policy, now: int) -> Verdict:
    """Whether every device that can be reached runs what it ran before."""
    told = set(offered(rollout))
    mine = [row for row in rows if row.id in told]
    back = [row for row in mine if is_back(rollout.app, rollout.before.get(row.id), _reported(row))]
    heard_after = now - policy.offline_after_s * 1000
    away = [row for row in mine if row not in back and (_heard_ms(row) or -math.inf) < heard_after]
    words = f"of {len(mine)} devices {len(back)} run what they ran before"
    words += f", {len(away)} are offline and will be told when they come" if away else ""
    if len(back) + len(away) == len(mine):
        return GoOn(words)
    late = sorted(row.id for row in mine if row not in back and row not in away)
    return Ask(f"{words}, {len(late)} do not yet: {', '.join(late[:3])}")


def _load(connection: sa.Connection, number: int) -> tuple[Rollout, Policy]:
    row = connection.execute(sa.select(rollouts).where(rollouts.c.id == number)).one_or_none()
    if row is None:
        raise NotFound(f"there is no rollout {number}")
    return msgspec.json.decode(row.body, type=Rollout), msgspec.json.decode(row.policy, type=Policy)


def _refuse_overlap(connection: sa.Connection, rollout: Rollout, mine: set[str]) -> None:
    """Two rollouts that speak to one device would pull it to and fro."""
    query = sa.select(rollouts.c.id, rollouts.c.state, rollouts.c.body).where(
        rollouts.c.state.in_([s.value for s in _OPEN])
    )
    for row in connection.execute(query):
        other = msgspec.json.decode(row.body, type=Rollout)
        if shared := mine & {device for wave in other.waves for device in wave} if other.app == rollout.app else set():
            raise Conflict(
                f"{len(shared)} of its devices, such as {min(shared)}, are in rollout {row.id}, which is {row.state}; "
                "wait for it, or abort it"
            )


def _reported(row: Row) -> Reported | None:
    return None if row.reported is None else msgspec.json.decode(row.reported, type=Reported)


def _heard_ms(row: Row) -> int | None:
    heard: int | None = row.heard_ms
    return heard


def _runs(row: Any, app: str) -> str | None:
    """The release that a device would be taken back to: the one that it kept last."""
    reported = _reported(row)
    report = reported.apps.get(app) if reported is not None else None
    return report.good if report is not None else None
