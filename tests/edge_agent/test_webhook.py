"""The webhook: each event until it is taken, whatever the receiver does; and no sink waits for another one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import pytest
from receiver import Receiver

from edge_agent.config import MqttConfig, SinksConfig, WebhookConfig
from edge_agent.outbox import Outbox
from edge_agent.sinks.delivery import Delivery
from edge_agent.sinks.factory import look
from edge_agent.sinks.inline import Inline
from edge_agent.sinks.jsonl import JsonlSink
from edge_agent.sinks.webhook import WebhookSink
from skerry.clock import SystemClock, Trust
from skerry.disk import Disk
from skerry.errors import ConfigError
from skerry.wire import Answer, Picture, Seen, encode

PICTURE = Picture(sha256="ab" * 32, bytes=3, width=1, height=1)
SECRET = b"hush"


def event(frame: int, picture: Picture | None = None) -> bytes:
    return encode(
        Seen(
            source="door", frame=frame, release="r", answers=[Answer("cat", 0.9)], utc_ms=0, trust=Trust.NONE,
            mono_ms=0, picture=picture,
        )
    )  # fmt: skip


@pytest.fixture
def receiver(tmp_path):
    with Receiver(tmp_path / "receiver") as running:
        yield running


class Sent:
    """An outbox with a file and a webhook."""

    def __init__(self, folder, receiver, read=None, stop_s=5.0, **config) -> None:
        self.outbox = Outbox(folder / "outbox", Disk(), 1 << 20, lambda: "s" * 32)
        self.file = folder / "events.jsonl"
        hook = WebhookConfig(url=receiver.url, **config)
        self.hook = WebhookSink(hook, SECRET, Inline(read), SystemClock())
        sinks = [self.hook, JsonlSink(self.file, Disk())]
        self.delivery = Delivery(self.outbox, sinks, SystemClock(), 0.001, stop_s=stop_s, uniform=lambda low, _: low)

    def __enter__(self):
        self.delivery.__enter__()
        return self

    def __exit__(self, *_):
        self.delivery.__exit__(None, None, None)

    def add(self, *frames, picture=None):
        for frame in frames:
            self.outbox.append(event(frame, picture))
        self.delivery.wake()

    def in_file(self) -> list[int]:
        return [json.loads(line)["seq"] for line in self.file.read_text().splitlines()]

    def until(self, reached, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, self.delivery.sinks()
            time.sleep(0.02)


def test_events_come_signed_in_order_and_a_poisoned_one_is_left_out_after_its_tries(tmp_path, receiver, caplog):
    receiver.mood(poison=(3,))
    with Sent(tmp_path, receiver, tries=2) as sent:
        sent.add(*range(1, 7))
        sent.until(lambda: len(receiver.taken()) == 5)
        status = sent.delivery.sinks()["webhook"]
    assert receiver.taken() == [1, 2, 4, 5, 6]
    assert [one["status"] for one in receiver.got()].count(422) == 2
    assert status.skipped == 1
    assert "event #3 is left out, it was refused 2 times: 422 this is what it says" in caplog.text
    for one in receiver.got():
        assert one["path"] == "/hook?door=1"
        seconds, digest = (part.split("=")[1] for part in one["headers"]["skerry-signature"].split(","))
        assert digest == hmac.new(SECRET, f"{seconds}.{one['body']}".encode(), hashlib.sha256).hexdigest()
        assert one["headers"]["skerry-event"] == f"{'s' * 32}/{json.loads(one['body'])['seq']}"
    assert sent.in_file() == [1, 2, 3, 4, 5, 6]


def test_a_receiver_that_is_gone_holds_nobody_back_and_gets_everything_when_it_is_there(tmp_path, receiver):
    receiver.kill()
    with Sent(tmp_path, receiver) as sent:
        sent.add(*range(1, 21))
        sent.until(lambda: sent.file.exists() and len(sent.in_file()) == 20)
        sent.until(lambda: sent.delivery.sinks()["webhook"].failing)
        assert sent.delivery.sinks()["webhook"].waiting == 20
        assert sent.delivery.sinks()["jsonl"].waiting == 0
        receiver.start()
        sent.until(lambda: len(receiver.taken()) == 20)
    assert receiver.taken() == list(range(1, 21))


@pytest.mark.slow
def test_a_slow_a_failing_and_a_dying_receiver_gets_each_event(tmp_path, receiver):
    with Sent(tmp_path, receiver, timeout_s=0.5) as sent:
        receiver.mood(wait_s=1.0)  # longer than anybody waits
        sent.add(1, 2, 3)
        sent.until(lambda: "timed out" in (sent.delivery.sinks()["webhook"].failing or ""))
        receiver.mood(status=503, retry_after="1")
        sent.until(lambda: "503" in (sent.delivery.sinks()["webhook"].failing or ""))
        receiver.mood(status=429)
        sent.until(lambda: "429" in (sent.delivery.sinks()["webhook"].failing or ""))
        receiver.mood()
        sent.until(lambda: sent.delivery.sinks()["webhook"].waiting == 0)
        receiver.kill()
        sent.add(4, 5)
        sent.until(lambda: sent.delivery.sinks()["webhook"].failing)
        receiver.start()
        sent.until(lambda: sent.delivery.sinks()["webhook"].waiting == 0)
        assert sent.delivery.sinks()["webhook"].skipped == 0
    taken = receiver.taken()
    assert sorted(set(taken)) == [1, 2, 3, 4, 5]
    assert sorted(taken, key=taken.index) == sorted(taken), "in order, whatever came twice"


@pytest.mark.slow
def test_where_it_stood_is_where_it_goes_on_after_a_restart_with_a_receiver_that_was_away(tmp_path, receiver):
    receiver.kill()
    with Sent(tmp_path, receiver, stop_s=1.0) as sent:
        sent.add(1, 2, 3)
        sent.until(lambda: sent.file.exists() and len(sent.in_file()) == 3)
    receiver.start()
    with Sent(tmp_path, receiver) as sent:
        sent.add(4)
        sent.until(lambda: len(receiver.taken()) == 4)
    assert receiver.taken() == [1, 2, 3, 4]
    assert sent.in_file() == [1, 2, 3, 4]


def test_a_picture_is_in_the_request_only_if_that_is_asked_for(tmp_path, receiver):
    with Sent(tmp_path, receiver, read={PICTURE.sha256: b"jpg"}.get) as sent:
        sent.add(1, picture=PICTURE)
        sent.add(2)
        sent.until(lambda: len(receiver.taken()) == 2)
    first, second = (json.loads(one["body"]) for one in receiver.got())
    assert base64.b64decode(first["picture"]) == b"jpg"
    assert first["event"]["picture"]["sha256"] == PICTURE.sha256
    assert second["picture"] is None


def test_a_doctor_sees_who_is_there_and_what_is_wrong(tmp_path, receiver):
    sinks = SinksConfig(
        webhook=WebhookConfig(url=receiver.url), mqtt=MqttConfig(url="mqtt://127.0.0.1:9", credentials="broker")
    )
    passwords = tmp_path / "credentials.toml"
    assert "is not there" in dict(look(sinks, passwords, SystemClock()))["mqtt"]
    passwords.write_text('[broker]\nuser = "u"\npassword = "p"\n')
    passwords.chmod(0o600)
    receiver.until_up()
    found = dict(look(sinks, passwords, SystemClock()))
    assert found["webhook"] is None
    assert "refused" in found["mqtt"]


def test_whom_to_believe_must_be_a_file_of_certificates(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    for ca in ("ca.pem", "none.pem"):
        config = WebhookConfig(url="https://localhost", ca=str(tmp_path / ca))
        with pytest.raises(ConfigError, match="PEM"):
            WebhookSink(config, None, Inline(None), SystemClock())


@pytest.mark.parametrize(
    ("url", "says"), [("ftp://a/b", "expected"), ("https:///x", "expected"), ("https://u:p@a/b", "name credentials")]
)
def test_an_address_that_cannot_be_one_is_refused(url, says):
    with pytest.raises(ConfigError, match=says):
        WebhookSink(WebhookConfig(url=url), None, Inline(None), SystemClock())
