"""Real processes, really killed: at every named step of an update, and at moments that nobody chose."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import tiny
from clips import write_clip
from live_agent import LiveAgent, is_active

pytestmark = pytest.mark.slow

STEPS = [
    f"{event}-{when}-record"
    for event in ("assigned", "fetched", "proved", "switched", "kept")
    for when in ("before", "after")
]
MOMENTS = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=40)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("bundles")
    return [tiny.Tiny(version=version).pack(folder) for version in (1, 2)]


def comes_back(agent: LiveAgent, release: str) -> None:
    """The update ends well, every event is there once, and the active release has its proof."""
    status = agent.wait_kept(release, 40)
    assert [p["refused"] for p in status["proofs"]] == [None]
    assert status["proofs"][0]["release"] == release
    assert agent.stop() == 0
    numbers = [line["seq"] for line in agent.lines()]
    assert numbers == list(range(1, len(numbers) + 1)), "each accepted event once, in order"
    assert agent.output().count("was killed by SIGKILL") == 1


@pytest.mark.parametrize("point", STEPS)
def test_an_agent_killed_at_a_step_of_its_first_update_comes_back(tmp_path, clip, bundles, point):
    path, release = bundles[0]
    with LiveAgent(tmp_path, clip) as agent:
        agent.start("--model", str(path), SKERRY_CRASH_AT=point)
        comes_back(agent, release)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_an_agent_killed_at_any_moment_of_a_later_update_comes_back(tmp_path, clip, bundles, seed):
    (old, first), (new, release) = bundles
    with LiveAgent(tmp_path, clip) as agent:
        agent.start("--model", str(old))
        agent.wait_kept(first)
        assert agent.install(new).returncode == 0
        time.sleep(random.Random(seed).uniform(0.0, 1.8))
        before = agent.status()
        agent.kill()
        status = agent.wait(lambda s: s["pid"] != before["pid"] and s["vision"])
        assert is_active(status, first) or is_active(status, release), "one of the two serves at once"
        comes_back(agent, release)
