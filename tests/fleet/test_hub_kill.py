"""kill -9 of the real hub at each named point, of its broker, and of both: rollouts go on where they were."""

from __future__ import annotations

import pytest
import tiny
from light import LightFleet
from live_hub import LiveHub, each_once, whole

from skerry.disk import CRASH_POINT
from skerry.fleet.documents import Policy, RolloutIn

pytestmark = pytest.mark.slow

POLICY = Policy(soak_s=1, clock_s=60, offline_after_s=20)
MOMENTS = ("before-commit", "in-transaction", "after-commit")
GOOD = ["Started", "WavePassed", "Finished"]
BAD = ["Started", "Harmed", "AllBack"]
UNDECIDED = ["Started", "Undecided"]
POINTS = [
    *(("inbound-" + moment, GOOD) for moment in ("before-commit", "after-commit")),
    *((f"{event}-{moment}", GOOD) for event in ("wavepassed", "finished") for moment in MOMENTS),
    *((f"{event}-{moment}", BAD) for event in ("harmed", "allback") for moment in MOMENTS),
    *((f"undecided-{moment}", UNDECIDED) for moment in MOMENTS),
]


class Story:
    def __init__(self, folder):
        self.folder, self.hub = folder, LiveHub(folder)
        self.version = 0

    def push(self):
        """Another release."""
        self.version += 1
        bundle, release = tiny.Tiny(version=self.version).pack(self.folder)
        with self.hub.client() as client:
            client.push(bundle, self.folder, lambda *_: None)
        for device in self.fleet.devices:
            device.versions[release] = self.version
        return f"tiny@{self.version}"

    def begin(self, kind):
        name = self.push()
        policy = POLICY
        if kind == BAD:
            for device in self.fleet.devices:
                device.refuses[self.version] = "its answers differ"
        if kind == UNDECIDED:  # the clock is shorter than the soak
            policy = Policy(soak_s=1000, clock_s=2, offline_after_s=20)
        with self.hub.client() as client:
            made = client.draft(RolloutIn(release=name, canary="1", waves=["100%"], policy=policy))
            client.act(made.id, "start")
        return made.id

    def log(self, number, until):
        def ended():
            assert self.fleet.fault() is None
            with self.hub.client() as client:
                seen = client.rollout(number)
            return seen if seen.log and seen.log[-1].event == until else None

        seen = self.hub.wait(f"{until} in rollout {number}", ended, 60)
        if seen.state == "asking":
            with self.hub.client() as client:
                client.act(number, "abort")
        return seen.log


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    made = Story(tmp_path_factory.mktemp("kill"))
    with made.hub:
        made.fleet = LightFleet(made.folder / "fleet", made.hub.claim(), 3, pace=20)
        with made.fleet:
            yield made


@pytest.mark.parametrize(("point", "kind"), POINTS, ids=[point for point, _ in POINTS])
def test_a_rollout_survives_a_kill_at(story, point, kind):
    hub = story.hub
    number = None if point.startswith("inbound") else story.begin(kind)
    hub.stop()
    hub.start(wait=False, **{CRASH_POINT: point})
    hub.wait(f"killed at {point}", lambda: hub.process.poll() is not None, 60)
    assert hub.process.returncode == -9
    hub.start()
    number = number or story.begin(kind)
    log = story.log(number, kind[-1])
    assert [step.event for step in log[: len(kind)]] == kind
    assert [step.step for step in log] == list(range(1, len(log) + 1))


def test_the_broker_may_be_killed_at_any_time(story):
    number = story.begin(GOOD)
    for _ in range(3):
        story.hub.kill_broker()
        story.hub.wait("the hub is connected again", story.hub._is_up, 30)
    assert [step.event for step in story.log(number, "Finished")] == GOOD


def test_no_event_was_lost_or_doubled_through_all_that(story):
    for device in story.fleet.devices:
        story.hub.wait("everything is acknowledged", lambda d=device: d.seq - d.acked <= 2, 30)
    for numbers in each_once(story.hub.events()).values():
        assert whole(numbers)
    assert "Traceback" not in story.hub.output()
