"""The whole agent with all its sinks at once: pictures, samples, a broker and a web server, killed in between."""

from __future__ import annotations

import hashlib
import json
import urllib.request

import pytest
import tiny
from clips import write_clip
from live_agent import LiveAgent, exact, skerry
from mosquitto import Listener, Mosquitto
from receiver import Receiver

pytestmark = pytest.mark.slow

MORE = """
[privacy]
allow = ["event-picture", "sample"]
[pictures]
longest = 64
[sampling]
random = 0.5
per_hour = 5
[sinks.mqtt]
url = "{mqtt}"
topic = "cam"
keepalive_s = 2
[sinks.webhook]
url = "{hook}"
picture = true
"""


def test_every_sink_has_every_event_and_the_pictures_are_there(tmp_path):
    bundle, release = tiny.Tiny().pack(tmp_path)
    clip = write_clip(tmp_path / "clip.mp4", frames=60)
    with (
        Mosquitto(tmp_path / "broker") as broker,
        Listener(broker.port) as listener,
        Receiver(tmp_path / "receiver") as receiver,
    ):
        more = MORE.format(mqtt=broker.url, hook=receiver.url)
        with LiveAgent(tmp_path, clip, more=more, more_events="picture = true").start("--model", str(bundle)) as agent:
            agent.wait_kept(release)
            agent.wait(lambda s: s["pictures"]["samples"]["kept"] == 5)
            agent.wait(lambda s: s["outbox"]["sinks"]["webhook"]["delivered"] > 5)
            agent.kill()
            listener.until("the broker says that it is gone", lambda: b"offline" in listener.of("cam/status"))
            receiver.kill()
            before = len(agent.lines())
            agent.wait(lambda s: s["outbox"]["sinks"]["webhook"]["failing"], 60)
            agent.wait(lambda s: s["outbox"]["sinks"]["jsonl"]["delivered"] > before, 60)
            receiver.start()
            status = agent.wait(lambda s: not s["outbox"]["sinks"]["webhook"]["failing"], 60)
            assert exact(status)
            said = skerry("agent", "status", "--data", str(agent.data)).stdout
            assert "sink      webhook: " in said
            assert "samples   5 kept" in said
            assert 'skerry_agent_sink_skipped_total{sink="webhook"} 0' in scraped(agent)
            assert status["pictures"]["samples"]["kept"] == 5, "the budget holds across a crash"
            assert agent.stop() == 0
        numbers = [line["seq"] for line in agent.lines()]
        assert numbers == list(range(1, len(numbers) + 1))
        listener.until("all are there", lambda: {one["seq"] for one in heard(listener)} == set(numbers))
    assert sorted(set(receiver.taken())) == numbers
    seen = [line["event"] for line in agent.lines() if line["event"]["kind"] == "seen"]
    assert all(event["picture"] for event in seen)
    for picture in (event["picture"] for event in seen):
        (path,) = (agent.data / "pictures").glob(f"*-{picture['sha256']}.jpg")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == picture["sha256"]
        assert max(picture["width"], picture["height"]) <= 64
    assert any(json.loads(one["body"])["picture"] for one in receiver.got())


def scraped(agent):
    port = json.loads((agent.data / "agent.json").read_bytes())["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def heard(listener):
    return [json.loads(payload) for payload in listener.of("cam/events")]
