"""The agent's own parts on simulated time, without threads: what a test can stop, cut and restart a thousand times."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import tiny
from journal import JournalDisk

from edge_agent.app import Paths
from edge_agent.config import EventsConfig, ProbationPolicy
from edge_agent.events import Events
from edge_agent.handin import current_wish
from edge_agent.mailbox import Captured, Mailbox
from edge_agent.outbox import Outbox
from edge_agent.reconcile import reconcile
from edge_agent.sinks.delivery import Delivery
from edge_agent.sinks.jsonl import JsonlSink
from edge_agent.sinks.sink import Sink
from edge_agent.slots import Inbox, Records, Slots
from edge_agent.updater import Tools, Updater
from edge_agent.vision import ActiveModel
from skerry.bundle import open_directory
from skerry.clock import SystemClock, Trust, Utc
from skerry.disk import Disk, nowhere
from skerry.errors import SkerryError
from skerry.execution import prove
from skerry.manifest import FLOOR, DeviceFacts
from skerry.update import State
from skerry.wire import MAIN_APP, Answer, Stored

FACTS = DeviceFacts(arch="x86_64", cpu=["avx2"], backends=["onnxrt"])
POLICY = ProbationPolicy(seconds=2.0, min_frames=10)
FRAMES_PER_WAIT = 4
SEGMENT_BYTES = 2048  # small, so that a life of seconds fills some


class SimulatedClock:
    """Time passes only when somebody waits; then the camera gives frames.

    Each boot has another year, so that no event of one is the same as one of another: a lost one would not be missed.
    """

    def __init__(self, boot: str, on_wait: Callable[[], None]) -> None:
        self._now, self._on_wait = 0.0, on_wait
        self._year_ms = zlib.crc32(boot.encode()) * 1000

    def utc(self) -> Utc:
        return Utc(self._year_ms + int(self._now * 1000), Trust.NONE)

    def monotonic(self) -> float:
        return self._now

    async def wait(self, seconds: float) -> None:
        while anyio.to_thread.current_default_thread_limiter().borrowed_tokens:  # noqa: ASYNC110 - threads, not tasks
            await anyio.sleep(0.0002)  # work in a thread takes no simulated time, so that every run is the same
        self._now += seconds
        self._on_wait()
        await anyio.lowlevel.checkpoint()


class StillVision:
    """The worker without its thread: frames are processed where the test hands them in."""

    def __init__(self) -> None:
        self.active: ActiveModel | None = None
        self.served: list[str] = []
        self._between_frames = threading.Lock()

    def swap(self, model: ActiveModel | None) -> None:
        with self._between_frames:
            before, self.active = self.active, model
        if before is not None and before is not model:
            before.backend.close()
        if model is not None:
            self.served.append(model.release)

    def process(self, frame: Captured) -> tuple[str, list[Answer]] | None:
        with self._between_frames:
            return (self.active.release, self.active(frame, lambda _: None)) if self.active else None


async def prove_here(root: Path, variants: list[str]) -> prove.Outcome:
    """The proof itself, without its child process."""
    try:
        return prove.conclude(prove.measure(root, variants, FLOOR, 1, SystemClock()))
    except SkerryError as exc:
        return prove.Outcome(why=str(exc), verdict=True)


class RememberingOutbox(Outbox):
    """Knows which event it gave which number, since the start."""

    def __init__(self, *arguments: object) -> None:
        self.given: dict[int, bytes] = {}
        super().__init__(*arguments)

    def append(self, event: bytes) -> int:
        number = super().append(event)
        self.given[number] = event
        if isinstance(self._disk, JournalDisk):
            self._disk.mark("event", (number, event))
        return number


class Repeats(Sink):
    """A receiver that does not drop repeats: it has what it was given since the start."""

    name = "repeats"

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def deliver(self, events: Sequence[Stored]) -> None:
        self.numbers += [event.seq for event in events]


@dataclass
class World:
    """One device from its start to its end. ``poor`` releases fail on live frames, whatever their proof says."""

    root: Path
    disk: Disk
    boot: str
    poor: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.paths = Paths(self.root / "data")
        self.disk.make_dirs(self.paths.data)
        self.clock = SimulatedClock(self.boot, self._camera)
        self.outbox = RememberingOutbox(self.paths.outbox, self.disk, 64 << 20, lambda: "the stream", SEGMENT_BYTES)
        self.mark("accepted", self.outbox.accepted)  # what it found, it calls accepted from the first moment on
        self.sink = JsonlSink(self.jsonl, self.disk)
        self.repeats = Repeats()
        self.delivery = Delivery(self.outbox, [self.sink, self.repeats], self.clock, 0.0)
        self.events = Events(EventsConfig(), self.outbox, self.clock, lambda: None)
        self.mailbox, self.vision = Mailbox(), StillVision()
        self.mailbox.add_source("camera", None)
        self.slots = Slots(self.paths.slots, self.disk, tiny.trusted())
        tools = Tools(
            records=Records(self.paths.record, self.disk),
            slots=self.slots,
            fetcher=Inbox(self.paths.inbox, self.disk),
            prove=prove_here,
            vision=self.vision,
            mailbox=self.mailbox,
            facts=FACTS,
            policy=POLICY,
            threads=1,
            clock=self.clock,
            tell=self.events.updated,
            reached=nowhere,
        )
        self.updater = Updater(MAIN_APP, tools, self.boot, "a run")
        self._number = self._waits = 0

    @property
    def jsonl(self) -> Path:
        return self.root / "events.jsonl"

    def _camera(self) -> None:
        """Frames come, are answered by the model in service, and now and then events are accepted and delivered."""
        for _ in range(FRAMES_PER_WAIT):
            frame = tiny.coloured(self._number // 12 % 3, 7)
            captured = Captured("camera", self._number, self.clock.monotonic(), self.clock.utc(), frame)
            self._number += 1
            self.mailbox.put(captured)
            self.mailbox.take(0)
            answered = self.vision.process(captured)
            failed = answered is None or answered[0] in self.poor
            if not failed:
                self.events.seen(captured, *answered)
            self.mailbox.done(captured, failed=failed)
        self._waits += 1
        self.updater.observe()
        if self._waits % 7 == 0:
            self.deliver()
        if self._waits % 40 == 0:
            self.outbox.save_cursor()
            self.mark("saved", self.outbox.delivered)

    def deliver(self) -> None:
        """What the delivery thread does in one turn."""
        self.outbox.sync()
        self.mark("accepted", self.outbox.accepted)
        self._bring()

    def _bring(self) -> None:
        self.delivery.accept()
        for courier in self.delivery.couriers:
            courier.drain()

    def mark(self, what: str, value: object) -> None:
        """Tells a journal what is promised from here on."""
        if isinstance(self.disk, JournalDisk):
            self.disk.mark(what, value)

    async def rest(self, until: State | None = None) -> None:
        """Runs until nothing is left to do, or until a state is reached."""
        self.deliver()  # as the delivery thread does first
        if (wish := current_wish(self.paths)) is not None:
            self.updater.wish(wish)

        async def watch(scope: anyio.CancelScope) -> None:
            for _ in range(4000):
                await anyio.lowlevel.checkpoint()
                record = self.updater.record
                if until is not None and record.state is until:
                    scope.cancel()
                    return
                settled = record.state in (State.IDLE, State.SAFE)
                served = record.active.release if record.active else None
                serving = self.vision.active.release if self.vision.active else None
                if settled and served == serving and reconcile(self.updater.desired, record, MAIN_APP) is None:
                    scope.cancel()
                    return
                await anyio.sleep(0.0005)
            raise AssertionError(f"no rest: {self.updater.record}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.updater.run)
            tasks.start_soon(watch, tasks.cancel_scope)
        if until is None:
            self.deliver()

    def end(self) -> None:
        """A clean stop."""
        self.updater.stopped()
        self._bring()
        self.outbox.close()
        self.sink.close()
        self.vision.swap(None)


def halves(paths: Paths) -> list[str]:
    """Slots that look whole and are not. The law holds at any time, before the agent has mended anything."""
    broken = []
    slots = paths.slots.iterdir() if paths.slots.is_dir() else ()
    for slot in slots:
        if slot.is_dir() and not slot.name.endswith(".part"):
            try:
                open_directory(slot, tiny.trusted())
            except SkerryError as exc:
                broken.append(f"slot {slot.name[:8]} looks whole and is not: {exc}")
    return broken


def broken_laws(world: World, accepted: int, saved: int, rejected_before: set[str]) -> list[str]:
    """Which of the device's laws do not hold, after it has come to rest.

    Args:
        accepted: how many events had been accepted before the cut.
        saved: up to which event the cursor had been saved before the cut.
        rejected_before: the releases on which a verdict had been passed before the cut.
    """
    broken = [*_broken_releases(world), *_broken_events(world, accepted)]
    if served := rejected_before & set(world.vision.served):
        broken.append(f"rejected releases became active: {served}")
    if world.repeats.numbers and world.repeats.numbers[0] <= saved:
        broken.append(f"events up to {saved} were delivered for good, and #{world.repeats.numbers[0]} came again")
    return broken


def _broken_releases(world: World) -> Iterator[str]:
    """What is active or good is here whole, and proved itself here."""
    for chosen in (world.updater.record.active, world.updater.record.good):
        if chosen is None:
            continue
        report = next((r for r in world.slots.proof(chosen.release) if r.variant == chosen.variant), None)
        if report is None or report.refused or report.release != chosen.release:
            yield f"{chosen} is active or good and has no proof"
        try:
            open_directory(world.slots.folder(chosen.release), tiny.trusted())
        except SkerryError as exc:
            yield f"{chosen} is damaged: {exc}"


def _broken_events(world: World, accepted: int) -> Iterator[str]:
    """Each accepted event is in the file once, under its own number."""
    try:
        lines = [json.loads(line) for line in world.jsonl.read_text().splitlines()]
    except ValueError as exc:
        yield f"the file of events is damaged: {exc}"
        return
    numbers = [line["seq"] for line in lines]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"events are lost, doubled or out of order: {numbers}"
    if len(numbers) < accepted:
        yield f"{accepted} events were accepted, {len(numbers)} are there"
    there = {line["seq"]: line["event"] for line in lines}
    for number, event in world.outbox.given.items():
        if number <= world.outbox.accepted and there.get(number) != json.loads(event):
            yield f"event #{number} was accepted and another one has its number"
    if world.outbox.delivered > world.outbox.accepted:
        yield "more was delivered than accepted"
