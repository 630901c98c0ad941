"""Power cuts at every step of an update's life, with every kind of loss, and a device that comes back from each."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import traceback
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
import pytest
import tiny
from journal import JournalDisk, Killed, Mark, Model, Step, SyncDir, SyncFile, restore
from still_device import World, broken_laws, halves

from edge_agent.app import Paths
from edge_agent.handin import hand_in
from skerry.disk import Disk
from skerry.update import State

pytestmark = pytest.mark.slow


@dataclass
class Story:
    """What happened, step by step, and what the releases in it are."""

    steps: list[Step]
    good: str
    better: str
    bad: str
    poor: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A device's life.

    A first release is kept. A second one is on probation when the process is killed, is killed again twice between a
    write and its sync (the machine lives on, with what was not synced yet), and is kept in the end. A third one is bad
    and refused. A fourth one proves itself, fails on live frames, and is taken back.
    """
    bundles = tmp_path_factory.mktemp("bundles")
    shuffled = tiny.Tiny(version=3, bend=lambda fields: {**fields, "labels": ["blue", "green", "red"]})
    releases = [tiny.Tiny(version=1), tiny.Tiny(version=2), shuffled, tiny.Tiny(version=4)]
    packed = [release.pack(bundles) for release in releases]
    (good, better, bad, poor) = (release for _, release in packed)
    disk = JournalDisk(tmp_path_factory.mktemp("device"))
    world = World(disk.root, disk, "first boot", {poor})
    for number, (path, release) in enumerate(packed):
        hand_in(path, world.paths, disk, tiny.trusted(), again=False)
        disk.mark("wished", release)
        if number == 1:
            anyio.run(world.rest, State.PROBATION)
            world = World(disk.root, disk, "first boot", {poor})
            for sync in ("jsonl.py:deliver", "outbox.py:sync"):
                world = killed_before(world, disk, sync)
        anyio.run(world.rest)
    world.end()
    record = world.updater.record
    assert (record.active.release, record.good.release, record.previous.release) == (better, better, good)
    assert set(record.rejected) == {bad, poor}
    return Story(disk.steps, good, better, bad, poor)


def killed_before(world: World, disk: JournalDisk, site: str) -> World:
    """Runs on until a line of ours is about to sync, ends the process there, and starts the next one.

    That one starts in another boot: one boot forgives a probation one crash only.
    """
    disk.kill_before = lambda step: isinstance(step, SyncFile) and step.site.startswith(site)
    try:
        anyio.run(world.rest)
    except BaseException as exc:
        if not was_killed(exc):
            raise
    assert disk.kill_before is None, f"{site} was never about to sync"
    disk.restarted()
    return World(disk.root, disk, f"boot after {site}", world.poor)


def was_killed(exc: BaseException) -> bool:
    """Whether it is `Killed`, or a task group's collection with nothing else in it."""
    return isinstance(exc, Killed) or any(was_killed(inner) for inner in getattr(exc, "exceptions", ()))


Cut = tuple[int, str, dict[str, "bytes | None"]]


def cuts(steps: list[Step], numbers: Container[int]) -> Iterator[Cut]:
    """Every different state of the disk that a cut after one of the steps may leave: step, kind of loss, tree."""
    model, seen = Model(), set()
    for number, step in enumerate(steps):
        model.apply(step)
        if number not in numbers or isinstance(step, Mark):
            continue
        for kind, tree in model.cuts():
            name = hashlib.sha256(repr(sorted(tree.items())).encode()).digest()
            if name not in seen:
                seen.add(name)
                yield number, kind, tree


def come_back(tree: dict[str, bytes | None], story: Story, upto: int, root: Path) -> list[str]:
    """Restarts the device on what a cut left, lets it come to rest, and holds it to its laws."""
    restore(tree, root)
    marks = [s for s in story.steps[: upto + 1] if isinstance(s, Mark)]
    accepted = max((m.value for m in marks if m.what == "accepted"), default=0)
    saved = max((m.value for m in marks if m.what == "saved"), default=0)
    wished = [m.value for m in marks if m.what == "wished"]
    try:
        broken = halves(Paths(root / "data"))
        world = World(root, Disk(), "last boot", {story.poor})
        rejected = set(world.updater.record.rejected)
        anyio.run(world.rest)
    except Exception as exc:  # noqa: BLE001 - whatever it is, the device did not come back
        return ["it does not come back: " + "".join(traceback.format_exception(exc)[-4:])]
    broken += broken_laws(world, accepted, saved, rejected | {story.bad})
    broken += _misses_wish(world, wished, story)
    world.end()
    events = dict(m.value for m in marks if m.what == "event")
    broken += _misses_events(world, {number: event for number, event in events.items() if number <= accepted})
    return broken


def _misses_events(world: World, accepted: dict[int, bytes]) -> list[str]:
    """Each event that was accepted before the cut is told under its number: a later one that took it is no excuse."""
    try:
        lines = [json.loads(line) for line in world.jsonl.read_text().splitlines()]
    except ValueError as exc:
        return [f"the file of events is damaged: {exc}"]
    there = {line["seq"]: line["event"] for line in lines}
    return [f"event #{n} was accepted and lost" for n, event in accepted.items() if there.get(n) != json.loads(event)]


def _misses_wish(world: World, wished: list[str], story: Story) -> list[str]:
    """A wish that was written is met in the end, or its release is rejected for a reason."""
    if not wished:
        return []
    record = world.updater.record
    active = record.active.release if record.active else None
    if wished[-1] in (story.good, story.better):
        # A newer wish may lie on the disk already: its mark comes after its last step.
        return (
            []
            if active in (wished[-1], story.better)
            else [f"wished for {wished[-1][:8]}, active is {active}: {record}"]
        )
    if record.state is not State.IDLE or active != story.better or wished[-1] not in record.rejected:
        return [f"{wished[-1][:8]} should be rejected and {story.better[:8]} active: {record}"]
    return []


def first_violation(steps: list[Step], numbers: Container[int], story: Story) -> str | None:
    """The first crash state from which the device does not come back as it must, in words."""
    memory = Path("/dev/shm")
    for number, kind, tree in cuts(steps, numbers):
        root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        try:
            broken = come_back(tree, story, number, root)
        finally:
            shutil.rmtree(root)
        if broken:
            return f"after step {number} ({steps[number]!r:.100}), {kind}: {broken}"
    return None


def without(steps: list[Step], site: str) -> tuple[list[Step], list[int]]:
    """The steps of a build that lacks the sync at one line, and where to look first: after each place where it was."""
    mutant = [Mark("left out", step) if getattr(step, "site", None) == site else step for step in steps]
    places = [number for number, step in enumerate(steps) if getattr(step, "site", None) == site]
    near = {later for number in places for later in range(number, min(number + 20, len(steps)))}
    return mutant, sorted(near | set(range(0, len(steps), 5)) | {len(steps) - 1})


def test_the_device_comes_back_from_every_power_cut(story: Story):
    everywhere = range(len(story.steps))
    assert sum(1 for _ in cuts(story.steps, everywhere)) > 500
    assert (found := first_violation(story.steps, everywhere, story)) is None, found


def test_a_build_that_lacks_any_one_sync_is_found_out(story: Story):
    sites = sorted({step.site for step in story.steps if isinstance(step, (SyncFile, SyncDir))})
    unnoticed = [site for site in sites if first_violation(*without(story.steps, site), story) is None]
    assert not unnoticed, f"{len(unnoticed)} of {len(sites)} syncs are not needed, or not tested: {unnoticed}"


def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path: Path):
    disk = JournalDisk(tmp_path)
    with disk.create(tmp_path / "a") as file:
        file.write(b"one")
        file.sync()
        file.write(b"two")
    model = Model()
    for step in disk.steps:
        model.apply(step)
    left = [tree for _, tree in model.cuts()]
    assert {} in left, "the name was never synced"
    assert {"a": b"one"} in left
    assert {"a": b"onetwo"} in left
    assert {"a": b"onet"} in left


def test_the_model_of_a_disk_keeps_what_was_synced(tmp_path: Path):
    disk = JournalDisk(tmp_path)
    disk.replace(tmp_path / "a", b"whole")
    model = Model()
    for step in disk.steps:
        model.apply(step)
    assert [tree for _, tree in model.cuts()] == [{"a": b"whole"}] * 5


def test_frames_are_told_apart(tmp_path: Path):
    """The scenario's camera shows what the tiny net can tell: else its proofs would prove nothing."""
    tiny.Tiny().write(tmp_path / "bundle")
    assert np.argmax([tiny.coloured(2, 1)[:, :, c].mean() for c in range(3)]) == 2
