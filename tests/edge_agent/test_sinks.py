"""From the outbox to its receivers: each event once, in order."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from edge_agent.outbox import Outbox
from edge_agent.sinks.delivery import Delivery
from edge_agent.sinks.jsonl import JsonlSink
from edge_agent.sinks.sink import Sink
from edge_agent.sinks.terminal import TerminalSink, describe
from skerry.clock import SystemClock, Trust
from skerry.disk import Disk
from skerry.errors import FormatError, StorageFull
from skerry.wire import Answer, Seen, Stored, Updated, encode

SEEN = Seen(
    source="door",
    frame=7,
    release="abcdef0123",
    answers=[Answer("cat", 0.9)],
    utc_ms=0,
    trust=Trust.NONE,
    mono_ms=0,
)


def stored(seq: int, stream: str = "s") -> Stored:
    return Stored(stream=stream, seq=seq, event=msgspec.Raw(encode(SEEN)))


def numbers(path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_a_repeat_is_dropped_also_after_a_restart(tmp_path):
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path, Disk())
    sink.deliver([stored(1), stored(2)])
    sink.deliver([stored(2), stored(3)])
    sink.close()
    JsonlSink(path, Disk()).deliver([stored(1), stored(3), stored(4)])
    assert numbers(path) == [1, 2, 3, 4]


def test_a_torn_line_is_taken_out_and_its_event_comes_again(tmp_path):
    path = tmp_path / "events.jsonl"
    JsonlSink(path, Disk()).deliver([stored(1), stored(2)])
    path.write_bytes(path.read_bytes()[:-20])
    JsonlSink(path, Disk()).deliver([stored(2), stored(3)])
    assert numbers(path) == [1, 2, 3]


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("milk\nbread\n")
    with pytest.raises(FormatError, match="not a file of Skerry's events"):
        JsonlSink(path, Disk())
    assert path.read_text() == "milk\nbread\n"


def test_a_new_outbox_writes_on_behind_the_old_ones_events(tmp_path):
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path, Disk())
    sink.deliver([stored(1, "old"), stored(2, "old")])
    sink.deliver([stored(1, "new")])
    assert numbers(path) == [1, 2, 1]


def test_a_line_for_a_person_says_what_was_seen():
    assert "door #7: cat 0.90  [abcdef01]" in describe(SEEN)
    step = Updated(
        app="main",
        before="proving",
        event="refused",
        state="idle",
        release="abcdef0123456789",
        active=None,
        why="too slow",
        utc_ms=0,
        trust=Trust.NONE,
        mono_ms=0,
    )
    assert "update abcdef012345 proving → idle (refused): too slow" in describe(step)


class Moody(Sink):
    """A receiver that refuses for a while."""

    def __init__(self) -> None:
        self.refusing, self.got = True, []

    def deliver(self, events) -> None:
        if self.refusing:
            raise StorageFull("no room")
        self.got += [event.seq for event in events]


def test_what_cannot_be_delivered_waits_and_comes_later(tmp_path, caplog):
    outbox, sink = Outbox(tmp_path, Disk(), 1 << 20, lambda: "s"), Moody()
    with Delivery(outbox, [sink], SystemClock(), 0.001) as delivery:
        for _ in range(3):
            outbox.append(encode(SEEN))
        delivery.wake()
        until(lambda: delivery.failing)
        sink.refusing = False
        until(lambda: len(sink.got) == 3)
    assert sink.got == [1, 2, 3]
    assert len([r for r in caplog.records if "events wait" in r.message]) == 1, "said once, not every second"


def test_events_of_an_earlier_run_are_delivered_at_the_start(tmp_path):
    outbox = Outbox(tmp_path, Disk(), 1 << 20, lambda: "s")
    outbox.append(encode(SEEN))
    outbox.close()
    lines: list[str] = []
    with Delivery(Outbox(tmp_path, Disk(), 1 << 20, lambda: "s"), [TerminalSink(lines.append)], SystemClock(), 0.001):
        until(lambda: lines)
    assert len(lines) == 1


def test_leaving_delivers_what_there_is(tmp_path):
    outbox, lines = Outbox(tmp_path, Disk(), 1 << 20, lambda: "s"), []
    with Delivery(outbox, [TerminalSink(lines.append)], SystemClock(), 5.0):
        outbox.append(encode(SEEN))
    assert len(lines) == 1


def until(reached, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.005)
