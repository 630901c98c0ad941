"""The whole agent, as processes: releases go live, are refused, are taken back; the agent dies and comes back."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest
import tiny
from clips import write_clip, write_images
from live_agent import LiveAgent, exact, get, is_active, skerry


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=60)


@pytest.fixture
def first(tmp_path: Path) -> tuple[Path, str]:
    return tiny.Tiny().pack(tmp_path)


def test_a_file_is_processed_to_its_end_every_frame_in_order(tmp_path, clip, first):
    agent = LiveAgent(
        tmp_path, clip, loop=False, more_source='policy = "every"\nrealtime = false', more_events='when = "every"'
    )
    bundle, release = first
    assert agent.start("--model", str(bundle)).process.wait(30) == 0
    seen = [line["event"] for line in agent.lines() if line["event"]["kind"] == "seen"]
    assert [event["frame"] for event in seen] == list(range(60))
    assert [event["answers"][0]["label"] for event in seen] == [tiny.COLOURS[n // 10 % 3] for n in range(60)]
    assert {event["release"] for event in seen} == {release}
    assert "captured 60 = processed 60 + superseded 0 + failed 0" in agent.output()


def test_a_directory_of_images_needs_no_configuration(tmp_path, first):
    keys = tmp_path / "config" / "skerry"
    keys.mkdir(parents=True)
    tiny.write_keys(keys).rename(keys / "signing.pem.pub")
    images = write_images(tmp_path / "images", 4)
    done = skerry(
        "agent", "run", "--model", str(first[0]), "--source", str(images), "--every", "--data", str(tmp_path / "data"),
        XDG_CONFIG_HOME=str(tmp_path / "config"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images #0: red" in done.stdout
    assert "captured 4 = processed 4" in done.stdout


@pytest.fixture
def live(tmp_path: Path, clip: Path, first: tuple[Path, str]):
    """An agent on a looping clip, with a first release that it has kept."""
    with LiveAgent(tmp_path, clip).start("--model", str(first[0])) as agent:
        agent.wait_kept(first[1])
        yield agent


@pytest.mark.slow
def test_a_second_release_is_proved_swapped_in_and_kept_and_every_frame_is_counted(live, tmp_path, first):
    second, release = tiny.Tiny(version=2).pack(tmp_path)
    done = live.install(second, "--wait", "20")
    assert done.returncode == 0, done.stdout
    assert [line.strip() for line in done.stdout.splitlines()][-1] == "kept: it is in service"
    status = live.wait_kept(release)
    assert exact(status)
    assert status["sources"]["camera"]["failed"] == 0
    assert status["record"]["previous"]["release"] == first[1]
    assert [p["refused"] for p in status["proofs"]] == [None]
    assert live.stop() == 0
    numbers = [line["seq"] for line in live.lines()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_a_bad_release_is_refused_and_vision_never_stops(live, tmp_path, first):
    shuffled = tiny.Tiny(version=2, bend=lambda fields: {**fields, "labels": ["blue", "green", "red"]})
    bad, release = shuffled.pack(tmp_path)
    before = live.status()["sources"]["camera"]
    done = live.install(bad, "--wait", "20")
    assert done.returncode == 1
    assert "refused: variant fp32: its answers differ from fp32: 2 of 6 agree" in done.stdout
    after = live.wait(lambda s: release in s["record"]["rejected"])
    assert is_active(after, first[1])
    assert after["sources"]["camera"]["processed"] > before["processed"]
    assert after["sources"]["camera"]["failed"] == 0
    assert live.install(bad, "--wait", "5").returncode == 1, "a rejection is remembered"
    assert live.install(bad, "--again", "--wait", "20").returncode == 1, "an operator may have it tried again"


@pytest.mark.slow
def test_a_release_that_is_too_slow_for_the_stream_is_taken_back(live, tmp_path, first):
    slow, release = tiny.Tiny(version=2, variants={"fp32": tiny.endless(150_000)}).pack(tmp_path)
    live.install(slow)
    status = live.wait(lambda s: release in s["record"]["rejected"] and s["record"]["state"] == "idle", 60)
    assert "too slow for the live stream" in status["record"]["rejected"][release]
    assert is_active(status, first[1])
    assert exact(status)


@pytest.mark.slow
def test_a_release_that_hangs_on_live_frames_is_taken_back_by_the_next_process(live, tmp_path, first):
    hanging, release = tiny.Tiny(version=2, variants={"fp32": tiny.hangs_in_the_dark()}).pack(tmp_path)
    live.install(hanging)
    live.wait(lambda s: is_active(s, release))
    dark = write_clip(tmp_path / "dark.mp4", frames=30, dark=True)
    live.kill()  # its next run sees the dark
    dark.replace(source_of(live))
    status = live.wait(lambda s: release in s["record"]["rejected"] and s["record"]["state"] == "idle", 60)
    assert "one frame has taken" in status["record"]["rejected"][release]
    assert is_active(status, first[1])


def source_of(agent: LiveAgent) -> Path:
    return Path(
        next(
            line.split('"')[1]
            for line in (agent.folder / "agent.toml").read_text().splitlines()
            if line.startswith("url")
        )
    )


@pytest.mark.slow
def test_a_killed_agent_is_started_again_and_goes_on(live, first):
    pid = live.status()["pid"]
    live.kill()
    status = live.wait(lambda s: s["pid"] != pid and s["sources"]["camera"]["processed"] > 5)
    assert is_active(status, first[1])
    assert "was killed by SIGKILL; starting it again" in live.output()


@pytest.mark.slow
def test_an_agent_does_not_outlive_its_parent(live):
    pid = live.status()["pid"]
    live.process.kill()
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline, "the agent runs on without its parent"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_only_one_agent_runs_on_one_folder(live):
    done = skerry("agent", "run", "--config", str(live.folder / "agent.toml"))
    assert done.returncode == 1
    assert "another agent runs on" in done.stderr
    assert "Traceback" not in done.stderr
    assert live.status()["vision"]


@pytest.mark.slow
def test_health_answers_on_loopback_and_nowhere_else(live):
    port = json.loads((live.data / "agent.json").read_bytes())["port"]
    assert get(port, "/health") == (200, {"vision": True, "state": "idle"})
    assert get(port, "/nothing")[0] == 404
    with socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.sendall(b"POST /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 405")
    with socket.create_connection(("127.0.0.1", port), 5) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"x" * 20_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 400"), "a request without an end is refused"
        while raw.recv(1000):
            """It is hung up on."""
    assert get(port, "/health")[0] == 200
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [where.split(":")[0] for where in listening if int(where.split(":")[1], 16) == port] == ["0100007F"]


@pytest.mark.slow
def test_status_is_readable_whether_the_agent_runs_or_not(live, first):
    running = skerry("agent", "status", "--data", str(live.data))
    assert running.returncode == 0
    assert f"in service tiny@1 ({first[1][:12]}) fp32" in running.stdout
    live.stop()
    stopped = skerry("agent", "status", "--data", str(live.data))
    assert "does not run" in stopped.stdout
    assert first[1][:12] in stopped.stdout
    nowhere = skerry("agent", "status", "--data", str(live.folder / "nowhere"))
    assert nowhere.returncode == 2
    assert "no agent has run on" in nowhere.stderr


@pytest.mark.slow
def test_a_stop_is_orderly_and_remembered(live):
    live.process.send_signal(signal.SIGINT)
    assert live.process.wait(20) == 0
    assert "stopped: captured" in live.output()
    assert not (live.data / "agent.json").exists()
    record = json.loads(skerry("agent", "status", "--json", "--data", str(live.data)).stdout)["record"]
    assert record["clean_stop"] is True


def test_nobody_is_trusted_by_accident(tmp_path, clip, first):
    done = skerry(
        "agent", "run", "--model", str(first[0]), "--source", str(clip), "--data", str(tmp_path / "data"),
        XDG_CONFIG_HOME=str(tmp_path / "empty"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "no key is trusted" in done.stderr
    assert not (tmp_path / "data").exists()
