"""Pictures of events: through the gate, by digest, within a quota, in one row with all events."""

from __future__ import annotations

import hashlib
import io
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.config import EventsConfig, Mask, PicturesConfig, PrivacyConfig
from edge_agent.darkroom import Darkroom, EventPictures
from edge_agent.events import Events, pictured
from edge_agent.gate import Gate, covered
from edge_agent.mailbox import Captured
from edge_agent.pictures import Pictures, encode_jpeg
from skerry.clock import SystemClock, Trust, Utc
from skerry.disk import Disk
from skerry.errors import StorageFull
from skerry.wire import Answer, Entered, Seen, decode_event

ALLOWED = PrivacyConfig(allow=["event-picture"])


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def raw(number: int, size: int = 1000) -> bytes:
    return number.to_bytes(4, "big") + bytes(size - 4)


def put(pictures: Pictures, *numbers: int) -> None:
    for number in numbers:
        pictures.put(raw(number), digest(raw(number)))


def test_the_oldest_go_for_new_ones_and_are_counted(tmp_path):
    pictures = Pictures(tmp_path, Disk(), 3000)
    put(pictures, 1, 2, 3)
    pictures.sent(pictures.oldest().number)
    put(pictures, 4, 5)
    assert pictures.read(digest(raw(2))) is None
    assert pictures.read(digest(raw(3))) == raw(3)
    assert (pictures.count, pictures.size, pictures.dropped, pictures.unsent) == (3, 3000, 2, 1)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jpg")) == 3000


def test_what_is_there_is_there_again_after_a_restart_and_goes_on_where_it_was(tmp_path):
    pictures = Pictures(tmp_path, Disk(), 10_000)
    pictures.put(raw(1), digest(raw(1)), b"{}")
    put(pictures, 2)
    pictures.sent(pictures.oldest().number)
    pictures.save()
    (tmp_path / f"{9:012d}-{'0' * 64}.jpg.part").write_bytes(b"torn")
    (tmp_path / f"{9:012d}-{'0' * 64}.json").write_bytes(b"{}")
    again = Pictures(tmp_path, Disk(), 10_000)
    assert (again.count, again.size, again.waiting) == (2, 2002, 1)
    assert again.oldest().sha256 == digest(raw(2))
    assert again.beside(digest(raw(1))) == b"{}"
    assert len(list(tmp_path.iterdir())) == 4, "what a power cut left went"
    put(again, 3)
    assert [int(path.name[:12]) for path in sorted(tmp_path.glob("*.jpg"))] == [1, 2, 3]


def test_the_same_picture_is_kept_once_and_one_over_the_quota_not_at_all(tmp_path):
    pictures = Pictures(tmp_path, Disk(), 1500)
    put(pictures, 1, 1)
    assert pictures.count == 1
    with pytest.raises(StorageFull, match="max_mib"):
        pictures.put(raw(2, 2000), "0" * 64)
    assert pictures.count == 1


def test_a_large_picture_is_made_smaller_and_its_name_is_its_digest():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 900, 3), np.uint8)
    jpeg, picture = encode_jpeg(pixels, 80, 600)
    assert Image.open(io.BytesIO(jpeg)).size == (picture.width, picture.height) == (600, 200)
    assert (picture.sha256, picture.bytes) == (digest(jpeg), len(jpeg))


@pytest.mark.parametrize(
    ("wanted", "yes"), [(False, False), (True, True), (["cat"], True), (["dog", "cow"], False), ([], False)]
)
def test_which_events_have_a_picture(wanted, yes):
    assert pictured(["cat"], wanted) is yes


# --- with events ---------------------------------------------------------------------------------------------------


class Written:
    """A journal in memory."""

    def __init__(self) -> None:
        self.events = []

    def append(self, event: bytes) -> int:
        self.events.append(decode_event(event))
        return len(self.events)


def frame(number: int) -> Captured:
    pixels = np.random.default_rng(number).integers(1, 256, (48, 64, 3), np.uint8)
    return Captured("gate", number, number / 10, Utc(number, Trust.RTC), pixels)


def scene(folder, privacy=ALLOWED, disk=None, max_bytes=1 << 20, **config):
    darkroom, written = Darkroom(), Written()
    pictures = Pictures(folder, disk or Disk(), max_bytes)
    made = EventPictures(darkroom, Gate(privacy), pictures, PicturesConfig())
    events = Events(
        EventsConfig(when="every", **{"picture": True, **config}), written, SystemClock(), lambda: None, made
    )
    return darkroom, events, written, pictures, made


def test_an_event_names_the_picture_that_is_on_the_disk(tmp_path):
    darkroom, events, written, pictures, _ = scene(tmp_path)
    with darkroom:
        events.seen(frame(1), "release", [Answer("cat", 0.9)])
    picture = written.events[0].picture
    jpeg = pictures.read(picture.sha256)
    assert (digest(jpeg), len(jpeg)) == (picture.sha256, picture.bytes)
    assert (picture.width, picture.height) == (64, 48)


def test_events_stay_in_one_row_whether_they_have_pictures_or_not(tmp_path):
    darkroom, events, written, _, _ = scene(tmp_path, picture=["cat"])
    with darkroom:
        for number in range(40):
            events.seen(frame(number), "release", [Answer("cat" if number % 3 else "dog", 0.9)])
            if number % 10 == 0:
                events.source_changed("gate", "lost", "why")
    assert [event.frame for event in written.events if isinstance(event, Seen)] == list(range(40))
    assert len(written.events) == 44
    assert written.events[0].picture is None


def test_what_the_gate_withholds_is_told_without_a_picture(tmp_path):
    privacy = PrivacyConfig(allow=["event-picture"], drop=["nurse"])
    darkroom, events, written, pictures, made = scene(tmp_path, privacy)
    with darkroom:
        events.seen(frame(1), "release", [Answer("cat", 0.9), Answer("nurse", 0.05)])
    assert [event.picture for event in written.events] == [None]
    assert (pictures.count, made.withheld) == (0, 1)
    darkroom, events, written, _, made = scene(tmp_path, PrivacyConfig())
    with darkroom:
        events.seen(frame(1), "release", [])
    assert [event.picture for event in written.events] == [None], "nothing is allowed by default"


def test_what_a_rule_tells_has_the_picture_of_the_frame_that_made_it_certain(tmp_path):
    darkroom, events, written, _, _ = scene(tmp_path, picture=["cat"])

    def entered(label: str, number: int) -> Entered:
        return Entered(
            source="gate", zone="door", track=1, label=label, inside=1, frame=number, release="release", utc_ms=0,
            trust=Trust.RTC, mono_ms=0,
        )  # fmt: skip

    with darkroom:
        events.seen(frame(1), "release", [Answer("cat", 0.9)])
        events.judged(entered("cat", 1))
        events.judged(entered("dog", 1))
        events.judged(entered("cat", 0))  # of a frame that is gone
    seen, *judged = written.events
    assert [event.picture for event in judged] == [seen.picture, None, None]


def test_another_policy_holds_from_the_next_picture_on(tmp_path):
    darkroom, events, written, _, made = scene(tmp_path, PrivacyConfig(allow=["event-picture"]))
    with darkroom:
        events.seen(frame(1), "release", [])
        made.gate = Gate(PrivacyConfig())
        events.seen(frame(2), "release", [])
    assert written.events[1].picture is None


@given(
    polygon=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6),
    longest=st.sampled_from([16, 40, 400]),
)
@settings(max_examples=30, deadline=None)
def test_no_masked_pixel_is_in_a_picture_however_large_it_is(polygon, longest):
    """Two frames that differ below the mask alone give the same file."""
    privacy = PrivacyConfig(allow=["event-picture"], masks=[Mask(polygon=polygon)])
    gate = Gate(privacy)
    pixels = np.random.default_rng(0).integers(1, 256, (48, 64, 3), np.uint8)
    other = pixels.copy()
    area = covered(polygon, 48, 64)
    other[area] = 255 - other[area]
    files = {
        encode_jpeg(gate.open("event-picture", Captured("gate", 0, 0.0, Utc(0, Trust.RTC), shown), []), 80, longest)[0]
        for shown in (pixels, other)
    }
    assert len(files) == 1


def test_a_disk_that_refuses_costs_pictures_and_no_event(tmp_path, caplog):
    class Full(Disk):
        def sync_dir(self, path):
            raise StorageFull(f"no room at {path.name}")

    darkroom, events, written, _, made = scene(tmp_path, disk=Full())
    with darkroom:
        for number in range(3):
            events.seen(frame(number), "release", [])
    assert [event.picture for event in written.events] == [None] * 3
    assert made.missed == 3
    assert "no room" in made.failing
    assert caplog.text.count("without their pictures") == 1


def test_too_many_at_once_are_told_without_pictures_and_the_worker_does_not_wait(tmp_path):
    darkroom, events, written, _, made = scene(tmp_path)
    busy = threading.Event()
    with darkroom:
        darkroom.make(busy.wait)
        for number in range(10):
            events.seen(frame(number), "release", [])
        assert written.events == [], "they stand in the row"
        busy.set()
    assert [event.frame for event in written.events] == list(range(10))
    assert sum(event.picture is not None for event in written.events) == 3
    assert made.missed == 7
