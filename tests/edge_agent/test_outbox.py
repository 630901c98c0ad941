"""The segment log: what is accepted is there, in order, once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.outbox import Outbox
from edge_agent.segments import BATCH_BYTES
from skerry.disk import Disk, DiskFile
from skerry.errors import StorageFull


def opened(folder: Path, segment_bytes: int = 1 << 20, max_bytes: int = 64 << 20, disk: Disk | None = None) -> Outbox:
    return Outbox(folder, disk or Disk(), max_bytes, lambda: "f" * 32, segment_bytes)


def everything(outbox: Outbox) -> dict[int, bytes]:
    found = {}
    while batch := outbox.read():
        found.update(enumerate(batch.events, batch.first))
        outbox.deliver(batch.last)
    return found


def test_an_event_is_delivered_only_after_it_was_synced(tmp_path):
    outbox = opened(tmp_path)
    assert outbox.append(b"one") == 1
    assert outbox.read() is None
    assert outbox.sync() == 1
    assert outbox.read().events == (b"one",)


def test_events_come_in_order_across_files_and_restarts(tmp_path):
    events = [b"event %d" % n for n in range(200)]
    outbox = opened(tmp_path, segment_bytes=300)
    for event in events[:120]:
        outbox.append(event)
    outbox.close()
    outbox = opened(tmp_path, segment_bytes=300)
    for event in events[120:]:
        outbox.append(event)
    outbox.sync()
    assert everything(outbox) == dict(enumerate(events, 1))


def test_the_stream_keeps_its_name(tmp_path):
    assert opened(tmp_path).stream == Outbox(tmp_path, Disk(), 1 << 20, lambda: "another").stream == "f" * 32


def test_what_was_delivered_is_not_read_again_and_its_files_go(tmp_path):
    outbox = opened(tmp_path, segment_bytes=200)
    for number in range(50):
        outbox.append(b"event %d" % number)
    outbox.sync()
    before = len(list(tmp_path.glob("*.log")))
    everything(outbox)
    outbox.close()
    assert len(list(tmp_path.glob("*.log"))) == 1 < before
    outbox = opened(tmp_path, segment_bytes=200)
    assert outbox.read() is None
    assert outbox.append(b"next") == 51, "numbers go on"


def test_a_torn_tail_is_cut_off_and_its_number_used_again(tmp_path):
    outbox = opened(tmp_path)
    outbox.append(b"whole")
    outbox.append(b"torn")
    outbox.sync()
    log = next(tmp_path.glob("*.log"))
    log.write_bytes(log.read_bytes()[:-2])
    outbox = opened(tmp_path)
    assert outbox.append(b"instead") == 2
    outbox.sync()
    assert everything(outbox) == {1: b"whole", 2: b"instead"}


def test_a_tail_of_zeros_is_no_event(tmp_path):
    outbox = opened(tmp_path)
    outbox.append(b"whole")
    outbox.sync()
    log = next(tmp_path.glob("*.log"))
    log.write_bytes(log.read_bytes() + bytes(64))
    assert everything(opened(tmp_path)) == {1: b"whole"}


def test_a_damaged_file_costs_its_own_events_and_they_are_counted(tmp_path):
    outbox = opened(tmp_path, segment_bytes=100)
    for number in range(1, 31):
        outbox.append(b"event %04d" % number)
    outbox.sync()
    second = sorted(tmp_path.glob("*.log"))[1]
    spoiled = bytearray(second.read_bytes())
    spoiled[10] ^= 1
    second.write_bytes(bytes(spoiled))
    outbox = opened(tmp_path, segment_bytes=100)
    got, lost = {}, 0
    while batch := outbox.read():
        got.update(enumerate(batch.events, batch.first))
        lost += batch.lost
        outbox.deliver(batch.last)
    assert len(got) + lost == 30
    assert lost > 0
    assert all(event == b"event %04d" % number for number, event in got.items())


def test_a_full_log_drops_its_oldest_events_and_says_how_many(tmp_path):
    outbox = opened(tmp_path, segment_bytes=1000, max_bytes=5000)
    for number in range(1, 1001):
        outbox.append(b"event %04d" % number)
    outbox.sync()
    assert sum(p.stat().st_size for p in tmp_path.glob("*.log")) <= 5000
    batch = outbox.read()
    assert batch.lost == batch.first - 1 > 0
    assert everything(outbox)[1000] == b"event 1000"


def test_a_batch_is_bounded(tmp_path):
    outbox = opened(tmp_path)
    for _ in range(100):
        outbox.append(bytes(2000))
    outbox.sync()
    batch = outbox.read()
    assert BATCH_BYTES - 2000 <= sum(map(len, batch.events)) <= BATCH_BYTES


def test_threads_append_while_another_one_syncs_and_reads(tmp_path):
    outbox = opened(tmp_path, segment_bytes=2000)
    done = threading.Event()

    def write(name: bytes) -> None:
        for number in range(500):
            outbox.append(b"%s %d" % (name, number))

    got: dict[int, bytes] = {}

    def read() -> None:
        while not done.is_set():
            outbox.sync()
            got.update(everything(outbox))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b")]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join(20)
    done.set()
    reader.join(20)
    outbox.sync()
    got.update(everything(outbox))
    assert sorted(got) == list(range(1, 1001))
    assert sorted(got.values()) == sorted(b"%s %d" % (n, i) for n in (b"a", b"b") for i in range(500))


class FullFile(DiskFile):
    """Takes half of what it is given, then the disk is full."""

    full = False

    def write(self, data: bytes) -> None:
        if FullFile.full:
            super().write(data[: len(data) // 2])
            raise StorageFull(f"cannot write {self.path}: the disk is full")
        super().write(data)


class FullDisk(Disk):
    def _open(self, path: Path, flags: int, mode: int) -> DiskFile:
        return FullFile(path, flags, mode)


def test_a_full_disk_loses_only_what_it_refused(tmp_path):
    outbox = opened(tmp_path, disk=FullDisk())
    outbox.append(b"before")
    FullFile.full = True
    with pytest.raises(StorageFull):
        outbox.append(b"refused")
    FullFile.full = False
    outbox.append(b"after")
    outbox.sync()
    assert everything(outbox) == {1: b"before", 2: b"after"}
    outbox.close()
    assert opened(tmp_path).append(b"next") == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), st.just("sync"), st.just("reopen"), st.just("deliver")), max_size=40))
def test_whatever_happens_each_accepted_event_is_read_once_in_order(tmp_path_factory, script):
    folder = tmp_path_factory.mktemp("outbox")
    outbox, appended, got = opened(folder, segment_bytes=150), [], {}
    for action in script:
        if action == "sync":
            outbox.sync()
        elif action == "deliver":
            outbox.sync()
            got.update(everything(outbox))
        elif action == "reopen":
            outbox.close()
            outbox = opened(folder, segment_bytes=150)
        else:
            outbox.append(action)
            appended.append(action)
    outbox.sync()
    got.update(everything(outbox))
    outbox.close()
    assert [got[n] for n in sorted(got)] == appended
    assert sorted(got) == list(range(1, len(appended) + 1))


def test_each_receiver_has_its_own_place_and_the_files_wait_for_the_slowest(tmp_path):
    outbox = opened(tmp_path, segment_bytes=200)
    fast, slow = outbox.cursor("fast"), outbox.cursor("slow")
    for number in range(50):
        outbox.append(b"event %d" % number)
    outbox.sync()
    fast.deliver(50)
    slow.deliver(10)
    outbox.save_cursor()
    assert (outbox.delivered, outbox.waiting, slow.waiting, fast.waiting) == (10, 40, 40, 0)
    outbox = opened(tmp_path, segment_bytes=200)
    fast, slow, new = (outbox.cursor(name) for name in ("fast", "slow", "new"))
    assert fast.read() is None
    assert [cursor.read().first for cursor in (slow, new)] == [11, 11]
    for cursor in (slow, new):
        cursor.deliver(50)
    outbox.close()
    assert len(list(tmp_path.glob("*.log"))) == 1


def test_a_receiver_that_is_gone_holds_nothing_back(tmp_path):
    outbox = opened(tmp_path, segment_bytes=200)
    outbox.cursor("gone")
    outbox.cursor("stays").deliver(0)
    for number in range(50):
        outbox.append(b"event %d" % number)
    outbox.close()
    outbox = opened(tmp_path, segment_bytes=200)
    outbox.cursor("stays").deliver(50)
    outbox.close()
    assert outbox.delivered == 50
    assert len(list(tmp_path.glob("*.log"))) == 1


def test_a_log_that_outgrows_its_quota_meanwhile_costs_the_slow_receiver_what_went_and_says_so(tmp_path):
    outbox = opened(tmp_path, segment_bytes=1000, max_bytes=5000)
    slow, fast = outbox.cursor("slow"), outbox.cursor("fast")
    got, lost = [], 0
    for number in range(1, 1001):
        outbox.append(b"event %04d" % number)
        outbox.sync()
        fast.deliver(number)
        if number % 200 == 0 and (batch := slow.read(100)):
            got += batch.events
            lost += batch.lost
            slow.deliver(batch.last)
    assert slow.delivered == len(got) + lost
    assert lost > 0
    assert fast.read() is None
