"""Moves a release through the update cycle. `skerry.update` decides; here is what entering each state *does*.

Every action is idempotent and leaves its effect on disk before it returns an event; then the record of the next state
is written, then the step is told. So a cut at any point is a repeat of the last action, never a half of it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from edge_agent import probation
from edge_agent.config import ProbationPolicy
from edge_agent.counts import Counts
from edge_agent.mailbox import Mailbox
from edge_agent.reconcile import reconcile, see
from edge_agent.slots import Fetcher, Records, Slots
from edge_agent.vision import ActiveModel
from skerry.clock import Clock
from skerry.disk import Reached
from skerry.errors import BackendError, SkerryError, StorageError
from skerry.execution import prove
from skerry.execution.backend import load_variant
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.manifest import DeviceFacts, Limits, Manifest, eligible, unsuited
from skerry.update import (
    Assigned,
    Chosen,
    Failed,
    Fetched,
    Happening,
    Proved,
    Record,
    Refused,
    Returned,
    State,
    Switched,
    advance,
    resume,
)
from skerry.wire import Desired

_log = logging.getLogger(__name__)

_LOOK_S = 0.25  # how often the wish is looked at
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_WARM_UP = 2


class Vision(Protocol):
    """What an updater needs of the worker."""

    @property
    def active(self) -> ActiveModel | None: ...

    def swap(self, model: ActiveModel | None) -> None: ...


class Prover(Protocol):
    """Runs a proof to its end, whatever the model does."""

    async def __call__(self, root: Path, variants: list[str]) -> prove.Outcome: ...


class Tell(Protocol):
    """Hears each step that was taken."""

    def __call__(self, app: str, before: Record, event: Happening, after: Record) -> None: ...


@dataclass(frozen=True)
class Tools:
    """What the updater works with; the composition root makes it."""

    records: Records
    slots: Slots
    fetcher: Fetcher
    prove: Prover
    vision: Vision
    mailbox: Mailbox
    facts: DeviceFacts
    policy: ProbationPolicy
    threads: int
    clock: Clock
    tell: Tell
    reached: Reached


class Updater:
    """One app's updates. `run` never returns; `record` is what the device is held to."""

    def __init__(self, app: str, tools: Tools, boot: str, run: str) -> None:
        self._app, self._tools = app, tools
        before = tools.records.record
        self.record = resume(before, boot=boot, run=run)
        try:
            tools.records.save(self.record)
        except StorageError as exc:
            if before.state is not State.IDLE:  # a crash in mid-update must count, or it would be tried for ever
                raise
            _log.error("this run is not recorded; the release in service runs all the same: %s", exc)
        if self.record.state is not before.state:
            _log.warning(
                "update of %s goes on in %s after an unclean end", (before.target or "?")[:12], self.record.state.value
            )
        self.desired: Desired | None = None
        self._held: dict[str, tuple[float, float]] = {}  # release: not before, and the pause that led there
        self._history: deque[tuple[float, Counts]] = deque(maxlen=4096)
        self._before: Counts | None = None
        self._enter: dict[State, Callable[[], Awaitable[Happening]]] = {
            State.IDLE: self._idle,
            State.FETCHING: self._fetch,
            State.PROVING: self._prove,
            State.SWITCHING: self._switch,
            State.PROBATION: self._watch,
            State.RETURNING: self._return,
            State.SAFE: self._safe,
        }

    async def run(self) -> None:
        """Enters the record's state, waits for what comes of it, and so on."""
        while True:
            event = await self._next_event()
            self._tools.reached(f"{type(event).__name__.lower()}-before-record")
            await self._step(event)
            self._tools.reached(f"{type(event).__name__.lower()}-after-record")

    def wish(self, desired: Desired) -> None:
        """Takes a newer wish in."""
        if self.desired is None or desired.version > self.desired.version:
            self.desired = desired
            self._held.clear()

    def give_up(self, why: str) -> None:
        """The process is about to end because the model in service hangs: a release on probation is to blame."""
        if self.record.state is State.PROBATION:
            self._save(advance(self.record, Failed(why, verdict=True)))

    def stopped(self) -> None:
        """Says goodbye: what follows is no crash."""
        self._save(msgspec.structs.replace(self.record, clean_stop=True))

    # Steps

    async def _next_event(self) -> Happening:
        """What the state's action comes to, or a new wish, whichever is first."""
        found: list[Happening] = []

        async def act(scope: anyio.CancelScope) -> None:
            try:
                found.append(await self._enter[self.record.state]())
            except SkerryError as exc:
                found.append(Failed(str(exc)))
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act, tasks.cancel_scope, name=self.record.state.value)
            while (assigned := self._assignment()) is None:
                await self._tools.clock.wait(_LOOK_S)
            found.append(assigned)
            tasks.cancel_scope.cancel()
        return found[0]

    def _assignment(self) -> Assigned | None:
        if self.desired is not None and self.desired.version > self.record.seen_version:
            try:
                self._save(see(self.record, self.desired))
            except StorageError as exc:
                _log.error("cannot record wish %d: %s", self.desired.version, exc)
                return None
        now = self._tools.clock.monotonic()
        held = {release for release, (until, _) in self._held.items() if now < until}
        return reconcile(self.desired, self.record, self._app, held)

    async def _step(self, event: Happening) -> None:
        """Writes the record of the next state, then tells it. A disk that refuses is waited for, nothing moves on."""
        before = self.record
        after = advance(before, event)
        pause = 1.0
        while True:
            try:
                self._save(after)
                break
            except StorageError as exc:
                _log.error("cannot record the step to %s: %s", after.state.value, exc)
                await self._tools.clock.wait(pause)
                pause = min(pause * 2, 60.0)
        if isinstance(event, Failed) and not event.verdict and before.target:
            self._hold(before.target)
        self._tools.tell(self._app, before, event, after)

    def _save(self, record: Record) -> None:
        self._tools.records.save(record)
        self.record = record

    def _hold(self, release: str) -> None:
        """Leaves a release alone for a while, longer each time."""
        _, pause = self._held.get(release, (0.0, _FIRST_PAUSE_S / 2))
        pause = min(pause * 2, _LONGEST_PAUSE_S)
        self._held[release] = (self._tools.clock.monotonic() + pause, pause)

    # What entering a state does

    async def _idle(self) -> Happening:
        if (failed := await self._serve()) is not None:
            return failed
        self._tidy()
        return await _never()

    async def _fetch(self) -> Happening:
        await self._serve()
        target = _required(self.record.target)
        if not self._tools.slots.holds(target):
            await anyio.to_thread.run_sync(self._stage, target)
        self._tools.fetcher.done(target)
        manifest = self._manifest(target)
        passed_over = unsuited(manifest, self._tools.facts)
        for variant, why in passed_over.items():
            _log.info("release %s: variant %s is passed over: it %s", target[:12], variant, why)
        if len(passed_over) == len(manifest.variants):
            names = ", ".join(v.id for v in manifest.variants)
            return Failed(f"none of its variants ({names}) suits this device ({self._tools.facts})", verdict=True)
        return Fetched()

    def _stage(self, target: str) -> None:
        self._tools.fetcher.fetch(target, self._tools.slots, lambda manifest: eligible(manifest, self._tools.facts))

    async def _prove(self) -> Happening:
        await self._serve()
        target = _required(self.record.target)
        variants = [v.id for v in eligible(self._manifest(target), self._tools.facts)]
        if not variants:
            return Refused("none of its variants suits this device any more")
        outcome = await self._tools.prove(self._tools.slots.folder(target), variants)
        if outcome.variant is None:
            return Refused(outcome.why) if outcome.verdict else Failed(outcome.why)
        self._tools.slots.save_proof(target, outcome.reports)
        return Proved(outcome.variant)

    async def _switch(self) -> Happening:
        target = Chosen(_required(self.record.target), _required(self.record.variant))
        await self._serve()
        self._remember_before()
        try:
            model = await anyio.to_thread.run_sync(self._load, target)
        except BackendError as exc:
            return Failed(f"it proved, but does not load in service: {exc}", verdict=True)
        await anyio.to_thread.run_sync(self._tools.vision.swap, model)
        self._history.clear()
        self.observe()
        return Switched()

    async def _watch(self) -> Happening:
        if (failed := await self._serve()) is not None:
            return Failed(failed.why, verdict=True)
        clock, mailbox, policy = self._tools.clock, self._tools.mailbox, self._tools.policy
        started, counts = clock.monotonic(), mailbox.total()
        while True:
            await clock.wait(min(1.0, policy.seconds / 20))
            seen = mailbox.total() - counts
            verdict = probation.judge(seen, self._before, clock.monotonic() - started, policy)
            if verdict is not None:
                return verdict

    async def _return(self) -> Happening:
        """The release kept last, or else the one before it."""
        why = "no release was kept before"
        for chosen in (self.record.good, self.record.previous):
            if chosen is None:
                continue
            try:
                await self._put_into_service(chosen)
            except SkerryError as exc:
                why = str(exc)
                _log.error("cannot return to release %s: %s", chosen.release[:12], exc)
            else:
                return Returned(chosen)
        return Failed(why)

    async def _safe(self) -> Happening:
        await anyio.to_thread.run_sync(self._tools.vision.swap, None)
        self._tidy()
        return await _never()

    # Helpers of the actions

    async def _serve(self) -> Failed | None:
        """Sees to it that what the record calls active is in service."""
        if self.record.active is None:
            return None
        try:
            await self._put_into_service(self.record.active)
        except SkerryError as exc:
            _log.error("release %s cannot be put into service: %s", self.record.active.release[:12], exc)
            return Failed(f"it cannot be put into service: {exc}")
        return None

    async def _put_into_service(self, chosen: Chosen) -> None:
        active = self._tools.vision.active
        if active is None or (active.release, active.variant) != (chosen.release, chosen.variant):
            model = await anyio.to_thread.run_sync(self._load, chosen)
            await anyio.to_thread.run_sync(self._tools.vision.swap, model)

    def _load(self, chosen: Chosen) -> ActiveModel:
        """Loads a release from its slot and warms it up, so that its first live frame is like any other."""
        root, manifest = self._tools.slots.folder(chosen.release), self._manifest(chosen.release)
        variant = manifest.variant(chosen.variant)
        backend = load_variant(root, manifest, variant, threads=self._tools.threads)
        for _ in range(_WARM_UP):
            backend.run()
        preprocess, decode = make_preprocessor(manifest, variant.graph), make_reader(manifest, variant.graph)
        return ActiveModel(chosen.release, chosen.variant, backend, preprocess, decode)

    def _manifest(self, release: str) -> Manifest:
        try:
            return self._tools.slots.manifest(release)
        except OSError as exc:
            raise StorageError(f"the slot of release {release[:12]} cannot be read: {exc.strerror}") from exc

    def _remember_before(self) -> None:
        """What became of the frames under the release in service, over a window like a probation's, or all of it."""
        if self.record.active is None:
            self._before = None
            return
        now, counts, policy = self._tools.clock.monotonic(), self._tools.mailbox.total(), self._tools.policy
        window = Counts()
        for at, then in reversed(self._history):
            window = counts - then
            if now - at >= policy.seconds and window.captured >= policy.min_frames:
                break
        self._before = window

    def observe(self) -> None:
        """Remembers what became of the frames so far; called once a second or so."""
        self._history.append((self._tools.clock.monotonic(), self._tools.mailbox.total()))

    def _tidy(self) -> None:
        try:
            self._tools.slots.collect(self.record.in_use())
        except StorageError as exc:
            _log.warning("cannot remove what is not needed any more: %s", exc)


async def _never() -> Happening:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


def _required(value: str | None) -> str:
    if value is None:
        raise AssertionError("the record has no target in a state that needs one")
    return value


def child_prover(limits: Limits, threads: int, timeout_s: float, memory_mib: int) -> Prover:
    """A `Prover` that runs each proof in a child process of its own."""

    async def run(root: Path, variants: list[str]) -> prove.Outcome:
        request = prove.Request(
            root=str(root), variants=variants, limits=limits, threads=threads, memory_mib=memory_mib
        )
        with anyio.move_on_after(timeout_s):
            done = await anyio.run_process(
                prove.command(), input=msgspec.json.encode(request), check=False, env=prove.environment()
            )
            return prove.interpret(done.returncode, done.stdout, done.stderr)
        return prove.timed_out(timeout_s)

    return run
