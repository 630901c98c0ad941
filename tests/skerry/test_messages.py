"""Messages between device and hub: one place for each topic, nothing too large, nothing that is not what it says."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry import messages
from skerry.clock import Trust
from skerry.errors import FormatError
from skerry.messages import (
    MAX_BATCH,
    MAX_MESSAGE,
    Ack,
    Batch,
    Birth,
    Death,
    Health,
    Rebirth,
    Sent,
    Topic,
    fitting,
    pack,
    unpack,
)

DEVICE = "abcdefghijklmnopqrstuvwxyz"
SENT = Sent(utc_ms=1_795_523_487_868, mono_ms=4821, boot="b", trust=Trust.RTC)
TOPICS = [value for value in vars(messages).values() if isinstance(value, Topic)]
DEATH = Death(run="r", in_order=True)


def test_every_topic_is_its_own():
    assert len({topic.path("acme", DEVICE) for topic in TOPICS}) == len(TOPICS) == 6


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.kind)
def test_a_topic_finds_the_device_of_its_own_messages_and_no_other(topic):
    path = topic.path("acme", DEVICE)
    assert path == f"skerry/1/acme/{DEVICE}/{topic.direction}/{topic.kind}"
    assert topic.device("acme", path) == DEVICE
    assert topic.every_device("acme") == path.replace(DEVICE, "+")
    for other in (
        path + "/x",
        "x" + path,
        path.replace("acme", "acmf"),
        path.replace(DEVICE, "+"),
        f"skerry/1/acme/{topic.kind}",
    ):
        assert topic.device("acme", other) is None
    assert [t for t in TOPICS if t.device("acme", path)] == [topic]


@pytest.mark.parametrize(
    ("tenant", "device"),
    [("a/b", DEVICE), ("+", DEVICE), ("", DEVICE), ("acme", "#"), ("acme", DEVICE[:-1]), ("acme", DEVICE.upper())],
)
def test_a_name_that_would_be_another_topic_is_refused(tenant, device):
    with pytest.raises(FormatError, match="is no name"):
        messages.BIRTH.path(tenant, device)


def test_a_message_comes_out_as_it_went_in():
    birth = Birth(agent="0.1", run="r", streams=["s"], seen_version=3, arch="x86_64", cpu=["avx2"], backends=["onnxrt"])
    envelope, body = unpack("birth", Birth, pack("birth", birth, SENT, "id 1"))
    assert body == birth
    assert (envelope.v, envelope.kind, envelope.id, envelope.sent) == (1, "birth", "id 1", SENT)


def test_what_a_newer_device_says_besides_is_passed_over():
    raw = msgspec.json.decode(pack("death", DEATH, SENT, "1"))
    raw["body"]["mood"] = "good"
    raw["more"] = 1
    assert unpack("death", Death, msgspec.json.encode(raw))[1] == DEATH


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda m: {**m, "v": 2}, "death is of version 2, this Skerry reads 1"),
        (lambda m: {**m, "kind": "birth"}, "a message at death says that it is 'birth'"),
        (lambda m: {**m, "body": {}}, "death: .*missing"),
        (lambda m: {k: v for k, v in m.items() if k != "sent"}, "a message at death: .*missing"),
        (lambda m: [m], "a message at death"),
    ],
)
def test_a_message_that_is_not_what_its_topic_says_is_refused(bend, said):
    raw = msgspec.json.encode(bend(msgspec.json.decode(pack("death", DEATH, SENT, "1"))))
    with pytest.raises(FormatError, match=said):
        unpack("death", Death, raw)


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_one_kind_of_error(raw):
    with pytest.raises(FormatError):
        unpack("death", Death, raw)


def test_a_message_that_is_too_large_is_neither_sent_nor_read():
    large = Death(run="r" * MAX_MESSAGE, in_order=True)
    with pytest.raises(FormatError, match=r"death has .* bytes; 65536 are the most"):
        pack("death", large, SENT, "1")
    with pytest.raises(FormatError, match="are the most"):
        unpack("death", Death, b" " * (MAX_MESSAGE + 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_sent(bad):
    with pytest.raises(FormatError, match="not finite"):
        pack("health", Health(release="0", kept_s=bad, captured=1, processed=1, superseded=0, failed=0), SENT, "1")


def test_a_batch_has_events_and_numbers_from_one():
    for fields in ({"first_seq": 0, "events": [msgspec.Raw(b"1")]}, {"first_seq": 1, "events": []}):
        with pytest.raises(FormatError):
            pack("events", Batch(stream="s", lost=0, **fields), SENT, "1")
    batch = Batch(stream="s", first_seq=5, lost=0, events=[msgspec.Raw(b'{"a":1}'), msgspec.Raw(b"2")])
    found = unpack("events", Batch, pack("events", batch, SENT, "1"))[1]
    assert (found.last_seq, [bytes(e) for e in found.events]) == (6, [b'{"a":1}', b"2"])


def test_messages_without_content_are_messages():
    assert unpack("rebirth", Rebirth, pack("rebirth", Rebirth(), SENT, "1"))[1] == Rebirth()
    assert unpack("ack", Ack, pack("ack", Ack(stream="s", last_seq=0), SENT, "1"))[1].last_seq == 0


@given(st.lists(st.integers(1, MAX_BATCH // 3), max_size=40))
def test_a_batch_takes_what_fits_and_at_least_one(sizes):
    events = [b"x" * size for size in sizes]
    count = fitting(events)
    assert count >= min(1, len(events))
    assert count <= 1 or sum(size + 1 for size in sizes[:count]) <= MAX_BATCH
    if count < len(events):
        assert sum(size + 1 for size in sizes[: count + 1]) > MAX_BATCH


def test_an_event_larger_than_a_batch_goes_alone():
    assert fitting([b"x" * (MAX_BATCH + 1), b"y"]) == 1
    assert fitting([b"y", b"x" * (MAX_BATCH + 1)]) == 1
