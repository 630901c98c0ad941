"""Events to a real broker: each one acknowledged, also when the broker dies in between; who is there is known."""

from __future__ import annotations

import base64
import json
import time

import pytest
from mosquitto import Listener, Mosquitto

from edge_agent.config import MqttConfig
from edge_agent.outbox import Outbox
from edge_agent.sinks.delivery import Delivery
from edge_agent.sinks.inline import Inline
from edge_agent.sinks.mqtt import MqttSink
from edge_agent.sources.credentials import Credentials
from skerry.clock import SystemClock, Trust
from skerry.disk import Disk
from skerry.errors import ConfigError
from skerry.wire import Answer, Picture, Seen, SourceChanged, encode

PICTURE = Picture(sha256="ab" * 32, bytes=3, width=1, height=1)


def event(frame: int, source: str = "door", picture: Picture | None = None) -> bytes:
    return encode(
        Seen(
            source=source, frame=frame, release="r", answers=[Answer("cat", 0.9)], utc_ms=0, trust=Trust.NONE,
            mono_ms=0, picture=picture,
        )
    )  # fmt: skip


class Sent:
    """An outbox with a broker behind it."""

    def __init__(self, folder, broker, credentials=None, read=None, **config) -> None:
        self.outbox = Outbox(folder / "outbox", Disk(), 8 << 20, lambda: "s" * 32)
        sink = MqttSink(MqttConfig(url=broker.url, **config), credentials, Inline(read), "skerry-test")
        self.delivery = Delivery(self.outbox, [sink], SystemClock(), 0.001, stop_s=2.0, uniform=lambda low, _: low)

    def __enter__(self):
        self.delivery.__enter__()
        return self

    def __exit__(self, *_):
        self.delivery.__exit__(None, None, None)

    def add(self, *events):
        for one in events:
            self.outbox.append(one)
        self.delivery.wake()

    @property
    def status(self):
        return self.delivery.sinks()["mqtt"]

    def until(self, reached, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, self.status
            time.sleep(0.02)


def numbers(payloads) -> list[int]:
    return [json.loads(one)["seq"] for one in payloads]


def test_each_event_has_its_topic_and_who_is_there_is_known(tmp_path):
    lost = encode(SourceChanged(source="a/b", state="lost", why="w", utc_ms=0, trust=Trust.NONE, mono_ms=0))
    with Mosquitto(tmp_path / "broker") as broker, Listener(broker.port) as listener:
        config = {"topic": "site/cam", "home_assistant": "homeassistant", "picture": True}
        with Sent(tmp_path, broker, read={PICTURE.sha256: b"jpg"}.get, **config) as sent:
            sent.add(event(1), event(2, picture=PICTURE), lost)
            sent.until(lambda: sent.outbox.delivered == 3)
        listener.until("it leaves", lambda: len(listener.of("site/cam/status")) == 2)
    assert listener.of("site/cam/status") == [b"online", b"offline"]
    seen = listener.of("site/cam/events/seen/door")
    assert numbers(seen) == [1, 2]
    assert [json.loads(one)["stream"] for one in seen] == ["s" * 32] * 2
    assert base64.b64decode(json.loads(seen[1])["picture"]) == b"jpg"
    assert numbers(listener.of("site/cam/events/source/a_b")) == [3]
    sensor = json.loads(listener.of("homeassistant/sensor/skerry-test/door/config")[0])
    assert sensor["state_topic"] == "site/cam/events/seen/door"
    assert sensor["availability_topic"] == "site/cam/status"


@pytest.mark.slow
def test_a_broker_that_dies_in_between_gets_every_event_in_order(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker, Listener(broker.port) as listener, Sent(tmp_path, broker) as sent:
        sent.add(*(event(n) for n in range(50)))
        listener.until("all are there", lambda: len(listener.of("skerry/events")) >= 50)
        time.sleep(1.5)  # it saves whom it keeps messages for
        broker.kill()
        listener.until("it notices", lambda: not listener.subscribed)
        sent.add(*(event(n) for n in range(50, 100)))
        sent.until(lambda: sent.status.failing)
        assert sent.status.waiting > 0
        broker.start()
        sent.until(lambda: sent.status.waiting == 0)
        listener.until("all are there", lambda: len(set(numbers(listener.of("skerry/events")))) == 100)
        got = numbers(listener.of("skerry/events"))
    assert sorted(got, key=got.index) == sorted(got), "in order, whatever came twice"
    assert listener.of("skerry/status").count(b"online") >= 2


@pytest.mark.slow
def test_a_connection_that_is_idle_stays_and_one_that_broke_is_made_anew(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker, Listener(broker.port) as listener:
        with Sent(tmp_path, broker, keepalive_s=1):
            listener.until("it is there", lambda: listener.of("skerry/status") == [b"online"])
            time.sleep(4.0)  # four times its keepalive
            assert listener.of("skerry/status") == [b"online"]
            broker.kill()
            broker.start()
            said = ("skerry/status", b"online", False)  # anew, not what the broker remembers
            listener.until("it says again that it is there", lambda: listener.heard.count(said) == 2, 60)
            assert b"offline" not in listener.of("skerry/status")
        listener.until("it is gone", lambda: listener.of("skerry/status")[-1] == b"offline")


@pytest.mark.slow
def test_a_password_is_asked_for_by_name(tmp_path):
    with (
        Mosquitto(tmp_path / "broker", "viewer", "hush") as broker,
        Listener(broker.port, user="viewer", password="hush") as listener,
    ):
        with Sent(tmp_path, broker, Credentials("viewer", "wrong")) as sent:
            sent.add(event(1))
            sent.until(lambda: sent.status.failing)
            assert "uthor" in sent.status.failing
            assert "wrong" not in sent.status.failing
        with Sent(tmp_path, broker, Credentials("viewer", "hush")):
            listener.until("it is there", lambda: numbers(listener.of("skerry/events")) == [1])


@pytest.mark.parametrize(("url", "says"), [("http://a", "expected"), ("mqtt://u:p@a", "name credentials")])
def test_an_address_that_cannot_be_one_is_refused(url, says):
    with pytest.raises(ConfigError, match=says):
        MqttSink(MqttConfig(url=url), None, Inline(None), "skerry-test")
