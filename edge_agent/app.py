"""The composition root: makes everything, passes it down, runs it, stops it in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import random  # noqa: TID251 - the composition root
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from edge_agent.api import live
from edge_agent.api.guard import Guard, token_of
from edge_agent.api.routes import Api
from edge_agent.api.server import serve
from edge_agent.config import AgentConfig
from edge_agent.daemon.notify import Notifier
from edge_agent.darkroom import Darkroom
from edge_agent.events import Events, Journal, Several
from edge_agent.gate import Gate
from edge_agent.hub_client import HubFetcher
from edge_agent.identity import Identity
from edge_agent.identity import load as load_identity
from edge_agent.imaging import Imaging
from edge_agent.lanes import Lanes
from edge_agent.link import Link
from edge_agent.link import Tools as LinkTools
from edge_agent.mailbox import Mailbox
from edge_agent.outbox import Outbox
from edge_agent.reload import Changes, changes
from edge_agent.report import Reporter
from edge_agent.rules.watch import Watch
from edge_agent.sinks.delivery import Delivery
from edge_agent.sinks.factory import make_sinks
from edge_agent.slots import Inbox, Records, Slots
from edge_agent.sources.credentials import Credentials
from edge_agent.sources.readers import Readers, check, credentials_file
from edge_agent.status import Latency, LinkStatus, OutboxStatus, SourceStatus, Status
from edge_agent.updater import Tools, Updater, child_prover
from edge_agent.vision import Hears, Worker
from skerry import __version__, signing
from skerry.clock import Clock, SystemClock, boot_id, new_id
from skerry.disk import Disk, Reached
from skerry.errors import AgentBusy, FormatError, SkerryError, SourceError, StorageError
from skerry.execution.device import this_device
from skerry.messages import Birth
from skerry.update import State
from skerry.wire import MAIN_APP, decode_desired

_log = logging.getLogger(__name__)

EXIT_STALLED = 71  # the model in service hangs: only a new process gets rid of it
DESIRED, RUNNING = "desired.json", "agent.json"


@dataclass(frozen=True)
class Paths:
    """Where things lie in the agent's data directory."""

    data: Path

    @property
    def lock(self) -> Path:
        return self.data / "agent.lock"

    @property
    def desired(self) -> Path:
        return self.data / DESIRED

    @property
    def running(self) -> Path:
        return self.data / RUNNING

    @property
    def inbox(self) -> Path:
        return self.data / "inbox"

    @property
    def slots(self) -> Path:
        return self.data / "slots"

    @property
    def record(self) -> Path:
        return self.data / "apps" / MAIN_APP

    @property
    def outbox(self) -> Path:
        return self.data / "outbox" / "events"

    @property
    def lanes(self) -> Path:
        return self.data / "outbox" / "hub"

    @property
    def identity(self) -> Path:
        return self.data / "identity"

    @property
    def signed_wish(self) -> Path:
        return self.data / "desired.signed"


class Running(msgspec.Struct, frozen=True):
    """How to reach a running agent: lies beside its data while it runs."""

    pid: int
    port: int


@contextlib.contextmanager
def locked(path: Path, disk: Disk) -> Iterator[None]:
    """Holds the data directory for one process. Raises `AgentBusy` if another one holds it."""
    disk.make_dirs(path.parent)
    disk.append(path).close()
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AgentBusy(f"another agent runs on {path.parent}; stop it, or give this one another --data") from None
        yield


def run(
    config: AgentConfig,
    reached: Reached,
    say: Callable[[str], object],
    again: Callable[[], AgentConfig] | None = None,
) -> int:
    """Runs an agent until it is told to stop, or all its sources have ended. Returns the exit code.

    Args:
        again: reads the configuration anew, for SIGHUP; None where there is no file.
    """
    config = msgspec.structs.replace(config, data=str(Path(config.data).absolute()))
    return anyio.run(_run, config, reached, say, again)


async def _run(
    config: AgentConfig,
    reached: Reached,
    say: Callable[[str], object],
    again: Callable[[], AgentConfig] | None,
) -> int:
    disk, clock, paths = Disk(), SystemClock(), Paths(Path(config.data))
    passwords = credentials_file(config, paths.data)
    secrets = check(config.sources, passwords)
    token, gate = token_of(config.api), Gate(config.privacy)
    trusted = [signing.load_public_key(Path(path)) for path in config.trust]
    identity = load_identity(paths.identity)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(paths.lock, disk))
        outbox = Outbox(paths.outbox, disk, config.events.max_mib << 20, new_id)
        uniform = random.SystemRandom().uniform
        imaging = Imaging(config, gate, Darkroom(), paths.data, disk, clock, uniform)
        sinks = make_sinks(config, passwords, imaging.pictures.read, outbox.stream, say, disk, clock)
        sync_s = config.events.sync_ms / 1000
        delivery = stack.enter_context(
            Delivery(outbox, sinks, clock, sync_s, stop_s=config.stop_s / 2, uniform=uniform)
        )
        stack.enter_context(imaging.darkroom)
        lanes = Lanes(paths.lanes, disk, config.events.max_mib << 20, new_id) if identity is not None else None
        journals = _Journals(outbox, delivery, lanes)
        events = Events(config.events, journals, clock, journals.wake, imaging.event_pictures)
        mailbox = Mailbox()
        newest, verdicts = live.Newest(), live.Verdicts()
        hears = Hears(events, [newest, verdicts, *imaging.emits])
        watch = Watch(config, hears, events.judged)
        worker = stack.enter_context(Worker(mailbox, watch, clock, config.stop_s / 2))
        tools = Tools(
            records=Records(paths.record, disk),
            slots=Slots(paths.slots, disk, trusted),
            fetcher=HubFetcher(identity, clock) if identity is not None else Inbox(paths.inbox, disk),
            prove=child_prover(config.proof.limits, config.threads, config.proof.timeout_s, config.proof.memory_mib),
            vision=worker,
            mailbox=mailbox,
            facts=this_device(),
            policy=config.probation,
            threads=config.threads,
            clock=clock,
            tell=events.updated,
            reached=reached,
        )
        run_id = new_id()
        updater = Updater(MAIN_APP, tools, boot_id(), run_id)
        if identity is not None and lanes is not None:
            link = _link(identity, lanes, config, paths, tools, updater, run_id)
            journals.link = link
        else:
            link = None
        readers = Readers(mailbox, clock, hears, uniform)
        readers.add(config.sources, secrets)
        agent = Agent(
            config,
            paths,
            disk,
            clock,
            mailbox,
            worker,
            updater,
            events,
            watch,
            delivery,
            outbox,
            tools.slots,
            run_id,
            readers,
            Notifier(os.environ),
            newest,
            verdicts,
            gate,
            token,
            again,
            link,
            lanes,
            imaging,
        )
        imaging.to_hub(identity)
        await agent.run()
        updater.stopped()
        imaging.close()
        if lanes is not None:
            lanes.close()
    say(agent.farewell())
    if (lost := agent.readers.lost_for_good()) is not None:
        raise SourceError(lost)
    return 0


class _Journals:
    """Where events go: to the local sinks' outbox, and to the hub's if there is a hub."""

    def __init__(self, outbox: Outbox, delivery: Delivery, lanes: Lanes | None) -> None:
        local: list[Journal] = [outbox] if lanes is None or delivery.couriers else []
        self._wake_local = delivery.wake if local else None
        self._all = Several([*local, *([lanes] if lanes is not None else [])])
        self.link: Link | None = None

    def append(self, event: bytes) -> int:
        return self._all.append(event)

    def wake(self) -> None:
        if self._wake_local is not None:
            self._wake_local()
        if self.link is not None:
            self.link.wake()


def _link(
    identity: Identity, lanes: Lanes, config: AgentConfig, paths: Paths, tools: Tools, updater: Updater, run_id: str
) -> Link:
    facts = tools.facts
    report = Reporter(lambda: updater.record, tools.mailbox.total, tools.slots.proof, tools.clock.monotonic)

    def birth(streams: list[str]) -> Birth:
        return Birth(
            agent=__version__,
            run=run_id,
            streams=streams,
            seen_version=updater.record.seen_version,
            arch=facts.arch,
            cpu=sorted(facts.cpu),
            backends=sorted(facts.backends),
        )

    link = Link(
        LinkTools(
            identity=identity,
            lanes=lanes,
            report=report,
            birth=birth,
            wish=updater.wish,
            seen_version=lambda: updater.record.seen_version,
            wish_file=paths.signed_wish,
            config=config.link,
            sync_s=config.events.sync_ms / 1000,
            disk=Disk(),
            clock=tools.clock,
            uniform=random.SystemRandom().uniform,
            new_id=new_id,
            boot=boot_id(),
            run=run_id,
        )
    )
    link.load_wish()
    return link


@dataclass
class Agent:
    """The running agent: its tasks, its status, its end."""

    config: AgentConfig
    paths: Paths
    disk: Disk
    clock: Clock
    mailbox: Mailbox
    worker: Worker
    updater: Updater
    events: Events
    watch: Watch
    delivery: Delivery
    outbox: Outbox
    slots: Slots
    run_id: str
    readers: Readers
    notifier: Notifier
    newest: live.Newest
    verdicts: live.Verdicts
    gate: Gate
    token: str | None
    again: Callable[[], AgentConfig] | None = None
    link: Link | None = None
    lanes: Lanes | None = None
    imaging: Imaging | None = None

    def __post_init__(self) -> None:
        self._started = self.clock.monotonic()
        self._stop = anyio.Event()
        self._playing = self._ready = False
        # What a release says of itself never changes: its id is the digest of it.
        self._manifest = functools.lru_cache(maxsize=8)(self.slots.manifest)

    async def run(self) -> None:
        """Runs all tasks until a signal, or the end of all sources, stops them; then stops the sources."""
        async with serve(self._api(), self.config.api) as port, anyio.create_task_group() as tasks:
            self._say_where(port)
            tasks.start_soon(self.updater.run, name="updates")
            if self.link is not None:
                tasks.start_soon(self.link.run, name="link")
            else:
                tasks.start_soon(self._look_for_wishes, name="wishes")
            if self.imaging is not None and self.imaging.upload is not None:
                tasks.start_soon(self.imaging.upload.run, name="pictures")
            tasks.start_soon(self._observe, name="watchdog")
            tasks.start_soon(self._play_sources, name="sources")
            tasks.start_soon(self._wait_for_signal, name="signals")
            await self._stop.wait()
            self.notifier.stopping()
            tasks.cancel_scope.cancel()
        await self.readers.stop(self.config.stop_s)
        self.disk.unlink(self.paths.running)

    def _api(self) -> Guard:
        """The HTTP interface, behind its guard."""
        stream = live.Stream(asyncio.get_running_loop().call_soon_threadsafe)
        self.events.heard = stream.heard
        api = Api(
            status=self.status,
            stages=self.worker.stages,
            worker=self.worker,
            readers=self.readers,
            newest=self.newest,
            verdicts=self.verdicts,
            stream=stream,
            gate=lambda: self.gate,
            pictures=self.imaging.pictures.read if self.imaging is not None else lambda _sha256: None,
            manifest=self._manifest,
        )
        return Guard(api.app(), self.config.api, self.token)

    def _say_where(self, port: int) -> None:
        try:
            self.disk.replace(self.paths.running, msgspec.json.encode(Running(os.getpid(), port)))
        except StorageError as exc:  # vision matters more
            _log.error("`skerry agent status` will not find this agent: %s", exc)

    async def _wait_for_signal(self) -> None:
        """A first signal stops in order, a second one at once; SIGHUP reads the configuration again."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for arrived in signals:
                if arrived == signal.SIGHUP:
                    await self._reload()
                    continue
                if self._stop.is_set():
                    os._exit(130)
                _log.info("stopping")
                self._stop.set()

    async def _reload(self) -> None:
        """Applies what a running agent can change. A configuration that is wrong changes nothing."""
        if self.again is None:
            _log.warning("there is no configuration file to read again: the agent was started without --config")
            return
        self.notifier.reloading(self.clock.monotonic())
        try:
            found = changes(self.config, self.again())
            secrets = check(found.begun, credentials_file(found.config, self.paths.data))
            gate = Gate(found.config.privacy)
        except SkerryError as exc:
            _log.error("the new configuration is left aside, the one before holds: %s", exc)
        else:
            await self._apply(found, secrets, gate)
        self.notifier.ready()

    async def _apply(self, found: Changes, secrets: Mapping[str, Credentials], gate: Gate) -> None:
        await self.readers.remove(found.ended, self.config.stop_s)
        self.readers.add(found.begun, secrets)
        if self._playing:
            self.readers.start(source.label for source in found.begun)
        self.config, self.events.config, self.gate = found.config, found.config.events, gate
        if self.imaging is not None:
            self.imaging.obey(gate)
        self.watch.apply(found.config)
        _log.info(
            "configuration read again: sources begun %s, ended %s; waits for a restart: %s",
            [source.label for source in found.begun],
            found.ended,
            found.restart or "nothing",
        )

    async def _look_for_wishes(self) -> None:
        """Reads the wish that lies on this device, whenever it changed."""
        seen = None
        while True:
            with contextlib.suppress(FileNotFoundError):
                mark = self.paths.desired.stat().st_mtime_ns
                if mark != seen:
                    seen = mark
                    self._take_wish()
            await self.clock.wait(0.25)

    def _take_wish(self) -> None:
        try:
            self.updater.wish(decode_desired(self.paths.desired.read_bytes()))
        except FormatError as exc:
            _log.error("%s: %s", self.paths.desired, exc)

    async def _observe(self) -> None:
        """The watchdog: a model that hangs holds the one inference thread, and only a new process gets rid of it."""
        while True:
            await self.clock.wait(1.0)
            self.updater.observe()
            stalled = self.worker.stalled_s()
            if stalled > self.config.probation.stall_s:
                why = f"one frame has taken {stalled:.0f} s"
                _log.critical("vision hangs: %s; starting over", why)
                self.updater.give_up(why)
                os._exit(EXIT_STALLED)
            self._tell_systemd()

    def _tell_systemd(self) -> None:
        """Alive while no frame hangs; ready once a model is warm, or there is none to wait for."""
        if not self.notifier.listened_to:
            return
        self.notifier.alive()
        active, state = self.worker.active, self.updater.record.state
        waits = state is State.IDLE and self.updater.record.active is None
        if not self._ready and (active is not None or waits):
            self._ready = True
            self.notifier.ready()
        failing = [label for label, why in self.readers.failing().items() if why is not None]
        named = self._name(active.release) if active is not None else "no model"
        self.notifier.status(f"{named}; {state.value}; sources failing: {', '.join(failing) or 'none'}")

    async def _play_sources(self) -> None:
        """Starts the sources once there is a model for their frames; ends the agent when the last one has ended."""
        while self.worker.active is None:
            await self.clock.wait(0.05)
        self.readers.start()
        self._playing = True
        while True:
            await self.clock.wait(0.1)
            if self.readers.ended and not self.mailbox.total().waiting:
                self._stop.set()

    # Status

    def status(self) -> Status:
        """What the agent says about itself now."""
        record, active = self.updater.record, self.worker.active
        counts = self.mailbox.counts()
        failing = self.readers.failing()
        wish = self.updater.desired.apps.get(MAIN_APP) if self.updater.desired else None
        return Status(
            version=__version__,
            pid=os.getpid(),
            run=self.run_id,
            uptime_s=self.clock.monotonic() - self._started,
            vision=active is not None and record.state is not State.SAFE,
            record=record,
            wish=wish.release if wish else None,
            names={release: self._name(release) for release in sorted(record.in_use())},
            proofs=self.slots.proof(active.release) if active else [],
            sources={
                label: SourceStatus(
                    captured=c.captured,
                    processed=c.processed,
                    superseded=c.superseded,
                    failed=c.failed,
                    waiting=c.waiting,
                    failing=failing.get(label),
                )
                for label, c in counts.items()
            },
            latency=_latency(list(self.worker.latencies_s)),
            outbox=OutboxStatus(
                stream=self.outbox.stream,
                accepted=self.outbox.accepted,
                delivered=self.outbox.delivered,
                lost=self.delivery.lost,
                unrecorded=self.events.unrecorded,
                failing=self.delivery.failing,
                sinks=self.delivery.sinks(),
            ),
            link=self._link_status(),
            pictures=self.imaging.status() if self.imaging is not None else {},
        )

    def _link_status(self) -> LinkStatus | None:
        if self.link is None or self.lanes is None:
            return None
        return LinkStatus(
            device=self.link.device,
            hub=self.link.hub,
            connected=self.link.connected,
            why=self.link.why,
            waiting=self.lanes.waiting,
            acknowledged=self.lanes.acknowledged,
            lost=self.lanes.lost,
            refused=self.link.refused,
        )

    def _name(self, release: str) -> str:
        try:
            manifest = self._manifest(release)
        except (OSError, SkerryError):
            return "?"
        return f"{manifest.name}@{manifest.version}"

    def farewell(self) -> str:
        """The exact sum, for the one who reads the terminal."""
        total = self.mailbox.total()
        return (
            f"stopped: captured {total.captured} = processed {total.processed} + superseded {total.superseded} "
            f"+ failed {total.failed}; {self._farewell_of_events()}"
        )

    def _farewell_of_events(self) -> str:
        if self.lanes is not None:
            return f"{self.lanes.acknowledged} events acknowledged by the hub, {self.lanes.waiting} wait on the disk"
        return f"{self.outbox.accepted} events accepted, {self.outbox.delivered} delivered"


def _latency(seconds: list[float]) -> Latency | None:
    if len(seconds) < 2:
        return None
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return Latency(frames=len(seconds), p50_ms=statistics.median(seconds) * 1e3, p99_ms=cuts[98] * 1e3)
