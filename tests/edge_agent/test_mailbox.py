"""Between readers and worker: every frame is counted once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge_agent.counts import Counts
from edge_agent.mailbox import Captured, Mailbox, Put
from skerry.clock import Trust, Utc

PICTURE = np.zeros((2, 2, 3), np.uint8)


def frame(source: str, number: int) -> Captured:
    return Captured(source, number, 0.0, Utc(0, Trust.NONE), PICTURE)


def test_the_newest_frame_supersedes_the_one_that_waits():
    mailbox = Mailbox()
    mailbox.add_source("camera", None)
    for number in range(5):
        mailbox.put(frame("camera", number))
    taken = mailbox.take(0)
    mailbox.done(taken, failed=False)
    assert taken.number == 4
    assert mailbox.counts()["camera"] == Counts(captured=5, processed=1, superseded=4)


def test_a_queue_keeps_every_frame_and_makes_the_reader_wait():
    mailbox = Mailbox()
    mailbox.add_source("file", 2)
    reader = threading.Thread(target=lambda: [mailbox.put(frame("file", n)) for n in range(5)])
    reader.start()
    time.sleep(0.05)
    assert mailbox.counts()["file"].captured == 2, "the reader waits"
    taken = []
    while len(taken) < 5:
        taken.append(mailbox.take(1.0))
        mailbox.done(taken[-1], failed=False)
    reader.join(1)
    assert [t.number for t in taken] == [0, 1, 2, 3, 4]
    assert mailbox.total() == Counts(captured=5, processed=5)


def test_sources_take_turns():
    mailbox = Mailbox()
    for source in ("a", "b", "c"):
        mailbox.add_source(source, None)
    order = []
    for number in range(9):
        for source in ("a", "b", "c"):
            mailbox.put(frame(source, number))
        order.append(mailbox.take(0).source)
    assert sorted(order) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_taking_gives_up_after_a_while():
    mailbox = Mailbox()
    mailbox.add_source("camera", None)
    assert mailbox.take(0.01) is None


def test_a_closed_mailbox_takes_no_frame_and_frees_who_waits():
    mailbox = Mailbox()
    mailbox.add_source("file", 1)
    mailbox.put(frame("file", 0))
    answers = []
    reader = threading.Thread(target=lambda: answers.append(mailbox.put(frame("file", 1))))
    reader.start()
    time.sleep(0.02)
    mailbox.close()
    reader.join(1)
    assert answers == [Put.CLOSED]
    assert mailbox.total() == Counts(captured=1, superseded=1), "what waited is counted, so the sum stays exact"


@pytest.mark.parametrize("queue", [None, 3])
def test_the_sum_is_exact_under_load(queue):
    mailbox = Mailbox()
    sources = [f"source {n}" for n in range(4)]
    for source in sources:
        mailbox.add_source(source, queue)
    stop = threading.Event()

    def read(source: str) -> None:
        number = 0
        while not stop.is_set() and mailbox.put(frame(source, number)) is not Put.CLOSED:
            number += 1

    def work() -> None:
        while not stop.is_set():
            if taken := mailbox.take(0.01):
                mailbox.done(taken, failed=taken.number % 7 == 0)

    threads = [threading.Thread(target=read, args=(s,)) for s in sources] + [threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    stop.set()
    mailbox.close()
    for thread in threads:
        thread.join(5)
    for source, counts in mailbox.counts().items():
        assert counts.captured > 0, source
        assert counts.waiting == 0, f"{source}: {counts}"
