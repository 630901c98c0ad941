"""The gate: what a client may say to the broker, by the name in its certificate."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.gate import Gate, Refused
from cloud_hub.identity import HUB

ME, OTHER = "a" * 26, "b" * 26
ROOT = "skerry/1/main"


def text(value):
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def packet(kind, flags, body):
    assert len(body) < 128
    return bytes([kind << 4 | flags, len(body)]) + body, 2


def connect(client=ME, *, level=4, flags=2, will=None, retain=False):
    body = text("MQTT") + bytes([level, flags | (4 if will else 0) | (32 if retain else 0)]) + b"\0\x14" + text(client)
    return packet(1, 0, body + (text(will) + text("x") if will else b""))


def publish(topic, flags=0):
    return packet(3, flags, text(topic) + b"hello")


def subscribe(*topics):
    return packet(8, 2, b"\0\1" + b"".join(text(topic) + b"\0" for topic in topics))


def gate(name=ME):
    made = Gate(name, "main")
    made.check(*connect(name))
    return made


def test_a_device_speaks_for_itself_and_hears_itself():
    mine = Gate(ME, "main")
    mine.check(*connect(will=f"{ROOT}/{ME}/up/death"))
    mine.check(*publish(f"{ROOT}/{ME}/up/events"))
    mine.check(*publish(f"{ROOT}/{ME}/up/events", flags=0b1010))
    mine.check(*subscribe(f"{ROOT}/{ME}/down/#", f"{ROOT}/hub/status"))
    mine.check(*packet(12, 0, b""))  # a ping


def test_the_hub_speaks_to_all():
    hub = gate(HUB)
    hub.check(*subscribe(f"{ROOT}/+/up/#"))
    hub.check(*publish(f"{ROOT}/{ME}/down/desired"))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (connect(OTHER), "certificate of another"),
        (connect(HUB), "certificate of another"),
        (connect(""), "certificate of another"),
        (connect(will=f"{ROOT}/{OTHER}/up/death"), "a will"),
        (connect(will=f"{ROOT}/{ME}/down/desired"), "a will"),
        (connect(will=f"{ROOT}/{ME}/up/death", retain=True), "a will"),
        (connect(level=5), "MQTT 3.1.1"),
        (connect(flags=0), "persistent session"),
        (connect(flags=2 | 128), "user name"),
        (publish(f"{ROOT}/{ME}/up/events"), "before CONNECT"),
    ],
)
def test_who_begins_wrongly_does_not_get_in(bad, says):
    with pytest.raises(Refused, match=says):
        Gate(ME, "main").check(*bad)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (connect(), "second CONNECT"),
        (publish(f"{ROOT}/{OTHER}/up/events"), "a message at"),
        (publish(f"{ROOT}/{ME}/down/desired"), "a message at"),
        (publish(f"skerry/1/other/{ME}/up/events"), "a message at"),
        (publish(f"{ROOT}/{ME}/up/events", flags=1), "retained"),
        (publish("$SYS/broker"), "a message at"),
        (publish(f"{ROOT}/{ME}/up/+"), "a message at"),
        (subscribe("#"), "a subscription"),
        (subscribe(f"{ROOT}/+/down/desired"), "a subscription"),
        (subscribe(f"{ROOT}/{OTHER}/down/#"), "a subscription"),
        (subscribe(f"{ROOT}/{ME}/down/#", f"{ROOT}/#"), "a subscription"),
        (packet(2, 0, b"\0\0"), "no client sends"),
        (packet(3, 0, b"\0\x30short"), "ends inside"),
        (packet(3, 0, b"\0\2\xff\xff"), "UTF-8"),
    ],
)
def test_who_is_in_may_still_not_do_everything(bad, says):
    with pytest.raises(Refused, match=says):
        gate().check(*bad)


@given(st.integers(0, 255), st.binary(max_size=120))
def test_no_packet_breaks_the_gate(first, body):
    for one in (Gate(ME, "main"), gate()):
        try:
            one.check(bytes([first, len(body)]) + body, 2)
        except Refused:
            continue
