"""The agent as a service: its word to systemd, its unit, its log lines, its configuration read again."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
import tiny
from clips import write_clip
from live_agent import LiveAgent, exact, skerry
from needs import program

from edge_agent.config import AgentConfig, EventsConfig, PrivacyConfig, SourceConfig
from edge_agent.daemon import logs, service
from edge_agent.daemon.notify import Notifier
from edge_agent.reload import changes
from skerry.disk import Disk
from skerry.errors import UsageError


class Systemd:
    """Hears a service's datagrams, as systemd does."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = str(folder / "notify")
        self._socket.bind(self.address)
        self._socket.settimeout(0.1)

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                return found


@pytest.fixture
def systemd(tmp_path):
    it = Systemd(tmp_path)
    yield it
    it.close()


def test_a_service_says_what_systemd_wants_to_hear(systemd):
    notifier = Notifier(
        {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    )
    assert notifier.watchdog_s == 30.0
    notifier.ready()
    notifier.status("two sources")
    notifier.status("two sources")
    notifier.alive()
    notifier.reloading(1.5)
    notifier.stopping()
    assert systemd.heard() == [
        "READY=1",
        "STATUS=two sources",
        "WATCHDOG=1",
        "RELOADING=1",
        "MONOTONIC_USEC=1500000",
        "STOPPING=1",
    ]


def test_without_systemd_nothing_is_said_and_another_process_s_watchdog_is_not_fed(tmp_path, systemd):
    Notifier({}).ready()
    other = Notifier({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
    other.alive()
    assert systemd.heard() == []
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


def test_log_lines_fit_who_listens():
    record = logging.LogRecord("edge_agent.app", logging.WARNING, "app.py", 1, "two\nlines %d", (3,), None)
    assert logs.formatter("journal", "r").format(record) == "<4>two\n<4>lines 3"
    line = json.loads(logs.formatter("json", "r").format(record))
    assert (line["level"], line["message"], line["run"]) == ("warning", "two\nlines 3", "r")
    assert abs(line["utc_ms"] - record.created * 1000) < 1
    assert "WARNING two" in logs.formatter("text", "r").format(record)
    assert logs.chosen(None, {"JOURNAL_STREAM": "8:1"}) == "journal"
    assert logs.chosen("json", {"JOURNAL_STREAM": "8:1"}) == "json"


def test_the_unit_is_one_that_systemd_takes_and_finds_closed(tmp_path):
    """Built into an image's folder: that runs nothing, so it can be tried anywhere."""
    analyze, said = program("systemd-analyze", "systemd"), []
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    service.install(service.Service(tmp_path), Disk(), said.append)
    unit = tmp_path / "etc/systemd/system/skerry-agent.service"
    assert "SupplementaryGroups=video\n" in unit.read_text()
    verified = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    closed = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=30", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert closed.returncode == 0, closed.stdout[-300:]
    assert any("etc/skerry/agent.toml" in line for line in said)


def test_a_configuration_survives_another_install_and_an_uninstall(tmp_path):
    it, said = service.Service(tmp_path), []
    service.install(it, Disk(), said.append)
    it.config.write_text("mine")
    service.install(it, Disk(), said.append)
    service.uninstall(it, Disk(), said.append)
    assert it.config.read_text() == "mine"
    assert not it.unit.exists()
    assert "kept: /var/lib/skerry" in said[-1]


def test_the_configuration_that_install_writes_is_one_that_the_agent_reads(tmp_path):
    it = service.Service(tmp_path)
    service.install(it, Disk(), lambda _: None)
    done = skerry("agent", "run", "--no-parent", "--config", str(it.config), "--data", str(tmp_path / "data"))
    assert "/etc/skerry/trusted.pub" in done.stderr, "only the key is missing"


@pytest.mark.skipif(os.geteuid() != 0 or Path("/run/systemd/system").is_dir(), reason="needs root, and no systemd")
def test_where_no_systemd_runs_that_is_said():
    with pytest.raises(UsageError, match="systemd does not run here"):
        service.install(service.Service(), Disk(), print)


BEFORE = AgentConfig(data="d", sources=[SourceConfig(url="push:", name="a"), SourceConfig(url="push:", name="b")])


def test_what_a_new_configuration_changes():
    after = msgspec.structs.replace(
        BEFORE,
        threads=BEFORE.threads + 1,
        sources=[BEFORE.sources[0], SourceConfig(url="push:", name="b", queue=3), SourceConfig(url="push:", name="c")],
        events=EventsConfig(min_score=0.7, jsonl="other.jsonl"),
        privacy=PrivacyConfig(allow=["snapshot"]),
    )
    found = changes(BEFORE, after)
    assert found.ended == ["b"]
    assert [source.label for source in found.begun] == ["b", "c"]
    assert found.restart == ["threads", "events.jsonl"]
    assert found.config.events.min_score == 0.7
    assert found.config.events.jsonl is None
    assert found.config.threads == BEFORE.threads
    assert found.config.privacy.allow == ["snapshot"]


def test_the_same_configuration_changes_nothing():
    found = changes(BEFORE, BEFORE)
    assert (found.ended, found.begun, found.restart, found.config) == ([], [], [], BEFORE)


@pytest.mark.slow
def test_a_running_agent_is_ready_alive_and_reads_its_configuration_again(tmp_path, systemd):
    bundle, release = tiny.Tiny().pack(tmp_path)
    one, two = (write_clip(tmp_path / f"{name}.mp4", frames=60) for name in ("one", "two"))
    with LiveAgent(tmp_path, one) as agent:
        agent.start("--no-parent", "--model", str(bundle), NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="4000000")
        agent.wait_kept(release)
        time.sleep(1.5)
        heard = systemd.heard()
        assert heard.count("READY=1") == 1
        assert heard.count("WATCHDOG=1") >= 2
        assert [line for line in heard if line.startswith("STATUS=tiny@1; idle")]

        file = agent.folder / "agent.toml"
        whole = file.read_text()
        file.write_text(whole + f'\n[[sources]]\nurl = "{two}"\nname = "second"\nloop = true\n')
        agent.process.send_signal(signal.SIGHUP)
        both = agent.wait(lambda s: s["sources"].get("second", {}).get("processed", 0) > 10)
        assert both["sources"]["camera"]["processed"] > 10

        file.write_text(whole + "\nnonsense = 1\n")
        agent.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while "left aside" not in agent.output():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert set(agent.status()["sources"]) == {"camera", "second"}

        file.write_text(whole)
        agent.process.send_signal(signal.SIGHUP)
        agent.wait(lambda s: set(s["sources"]) == {"camera"})
        assert "RELOADING=1" in systemd.heard()
        assert exact(agent.status())
        assert agent.stop() == 0
        assert "STOPPING=1" in systemd.heard()


@pytest.mark.slow
def test_the_small_parent_hands_the_wish_to_read_the_configuration_on(tmp_path):
    bundle, release = tiny.Tiny().pack(tmp_path)
    with LiveAgent(tmp_path, write_clip(tmp_path / "one.mp4", frames=60)) as agent:
        agent.start("--model", str(bundle))
        agent.wait_kept(release)
        file = agent.folder / "agent.toml"
        file.write_text(file.read_text() + '\n[[sources]]\nurl = "push:"\nname = "door"\n')
        agent.process.send_signal(signal.SIGHUP)
        agent.wait(lambda s: "door" in s["sources"])


@pytest.mark.slow
def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tmp_path / "agent.toml"
        config.write_text(
            f'data = "{tmp_path}/data"\ntrust = ["{tmp_path}/none.pub"]\n[api]\nport = {taken.getsockname()[1]}\n'
            f'[events]\npicture = true\n[sinks.webhook]\nurl = "http://127.0.0.1:9/hook"\n'
            f'[[sources]]\nurl = "{clip}"\n[[sources]]\nurl = "rtsp://127.0.0.1:9/live"\nname = "gate"\n'
        )
        done = skerry("agent", "doctor", "--config", str(config))
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert "✓ source clip.mp4 gives pictures of 96x64" in lines
    assert "✗ source gate gives no picture" in lines
    assert any("rtsp://127.0.0.1:9/live cannot be opened: Connection refused" in line for line in lines)
    assert any(line.startswith("✗ trust") for line in lines)
    assert any(line.startswith("✗ sink webhook") for line in lines)
    assert any(line.startswith("✗ privacy") and "event-picture is wanted and not allowed" in line for line in lines)
    assert any(line.startswith("✗ port") and "Address already in use" in line for line in lines)
