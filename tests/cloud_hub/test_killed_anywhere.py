"""kill -9 of the hub at every persisted step of rollouts: nothing happens twice, nothing is forgotten.

The story: a good release, one that the canary refuses, one that a later wave returns from; one device is absent.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from simulated import RELEASES, Fleet, SimulatedDevice, SimulatedHub

from cloud_hub.rollouts.judge import Policy

SHM = Path("/dev/shm")  # a kill loses no page of the kernel's: the disk's own speed tells nothing here
POLICY = Policy(soak_s=5, offline_after_s=20, clock_s=90, min_share=0.5)
SEEDS = range(20)


@pytest.fixture
def folder(tmp_path):
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else tmp_path) as made:
        yield Path(made)


def story(path, seed, kill_at=0, refusal="its answers differ"):
    """Plays it; returns the decision logs, the hub, and the devices."""
    source = random.Random(seed)
    devices = [SimulatedDevice("abcdefghijklmnopqrstuvwxy" + n, random.Random(f"{seed} {n}")) for n in "abcde"]
    devices[0].refuses = {2: refusal}
    start = source.randrange(10, 25)
    devices[4].away = [(start, start + source.randrange(30, 60))]
    devices[2].returns = {3: "too slow"}
    hub = SimulatedHub(path, kill_at)
    try:
        fleet = Fleet(hub, devices)
        fleet.step()
        logs = [fleet.roll_out(1, POLICY, ["50%", "100%"], ("done",), 400)]
        logs.append(fleet.roll_out(2, POLICY, ["100%"], ("taken back",), 200))
        logs.append(fleet.roll_out(3, POLICY, ["50%", "100%"], ("taken back",), 400))
        for _ in range(10):
            fleet.step()
        rows = hub.ask("rows", fleet.now_ms)
    finally:
        hub.close()
    return logs, hub.points, devices, rows


def decided(logs):
    """What was decided: the log without its times."""
    return [[(s.step, s.event, s.state, s.wave, s.why) for s in log] for log in logs]


def check(devices, rows):
    for device in devices:
        assert device.active == RELEASES[1], "the fleet is not on the good release"
        assert RELEASES[2] not in device.ran, "a refused release was active"
    assert all(RELEASES[3] not in d.ran for d in devices[3:]), "a bad release went beyond its waves"
    numbers = {}
    for row in rows:
        numbers.setdefault(row[1], []).append(row[2])
    for device in devices:
        assert numbers[device.id] == list(range(1, len(numbers[device.id]) + 1)), "an event is lost or there twice"
        assert len(numbers[device.id]) == device.acked >= device.seq - 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_hub_that_is_killed_anywhere_decides_the_same(seed, folder):
    logs, points, devices, rows = story(folder / "whole.db", seed)
    check(devices, rows)
    steps = [n for n, point in enumerate(points, 1) if not point.startswith("inbound")]
    inbound = [n for n, point in enumerate(points, 1) if point.startswith("inbound")]
    assert len(steps) > 20
    for number in [*steps, *random.Random(seed).sample(inbound, 3)]:
        again, _, devices, rows = story(folder / f"killed{number}.db", seed, number)
        assert decided(again) == decided(logs), f"killed at point {number}, {points[number - 1]}"
        check(devices, rows)


def test_the_decisions_say_why_in_numbers(folder):
    logs, _, devices, rows = story(folder / "hub.db", 0)
    check(devices, rows)
    first, second, third = ([(s.event, s.why) for s in log] for log in logs)
    assert [event for event, _ in first] == ["Started", "WavePassed", "WavePassed", "Finished"]
    assert first[1][1] == "of 1 devices 1 passed"
    assert [event for event, _ in second] == ["Started", "Harmed", "AllBack"]
    assert "its answers differ" in second[1][1]
    assert "1 harmed" in second[1][1]
    assert [event for event, _ in third] == ["Started", "WavePassed", "Harmed", "AllBack"]
    assert "too slow" in third[2][1]


def test_a_log_that_is_wrong_is_seen(folder):
    """The comparison can fail: one number that is another makes another log."""
    logs, *_ = story(folder / "one.db", 0, refusal="15 of 16 answers")
    again, *_ = story(folder / "two.db", 0, refusal="14 of 16 answers")
    assert decided(again) != decided(logs)
