"""The worker: swaps fall between two frames, and every frame is counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from heard import Heard
from typing_extensions import Self

from edge_agent.counts import Counts
from edge_agent.mailbox import Captured, Mailbox, Put
from edge_agent.vision import ActiveModel, Worker
from skerry.clock import SystemClock
from skerry.errors import BackendError
from skerry.execution.backend import load_variant
from skerry.execution.processing import Preprocessor, make_decoder
from skerry.manifest import Manifest

CLOCK = SystemClock()


def load(root: Path, release: str) -> ActiveModel:
    manifest = Manifest.parse((root / "bundle.json").read_bytes())
    backend = load_variant(root, manifest, manifest.variants[0], threads=1)
    return ActiveModel(release, manifest.variants[0].id, backend, Preprocessor(manifest), make_decoder(manifest))


def captured(number: int, source: str = "camera") -> Captured:
    return Captured(source, number, CLOCK.monotonic(), CLOCK.utc(), tiny.coloured(number % 3, number % 5))


class Feed:
    """Readers that put frames in as fast as the mailbox takes them."""

    def __init__(self, mailbox: Mailbox, sources: dict[str, int | None]) -> None:
        self._mailbox, self._stop = mailbox, threading.Event()
        for source, queue in sources.items():
            mailbox.add_source(source, queue)
        self._threads = [threading.Thread(target=self._read, args=(source,)) for source in sources]

    def _read(self, source: str) -> None:
        number = 0
        while not self._stop.is_set() and self._mailbox.put(captured(number, source)) is Put.TAKEN:
            number += 1
            self._stop.wait(0.0005)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._mailbox.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def releases(tmp_path: Path) -> list[tuple[Path, str]]:
    """Two releases whose answers name them."""
    found = []
    for version in (1, 2):
        root = tmp_path / str(version)
        labels = [f"{colour}@{version}" for colour in tiny.COLOURS]
        found.append((root, tiny.Tiny(version=version, labels=labels).write(root)))
    return found


def test_two_hundred_swaps_under_load_lose_no_frame_and_mix_none(releases):
    mailbox, heard = Mailbox(), Heard()
    with Worker(mailbox, heard, CLOCK, 5.0) as worker, Feed(mailbox, {"camera": None, "another": None, "file": 4}):
        for swap in range(200):
            root, release = releases[swap % 2]
            worker.swap(load(root, release))
            assert worker.active.release == release
    total, seen = mailbox.total(), Counter(release for _, release, _ in heard.answers)
    versions = {release: str(version) for version, (_, release) in enumerate(releases, 1)}
    for frame, release, answers in heard.answers:
        assert all(a.label.endswith(f"@{versions[release]}") for a in answers), f"frame {frame.number} met two models"
    assert min(seen.values()) > 50, f"both releases were in service: {seen}"
    assert total.captured == total.processed + total.superseded + total.failed
    assert total.processed == sum(seen.values())
    assert mailbox.counts()["file"].superseded <= 4, "only what waited at the end"


def test_frames_that_come_before_there_is_a_model_are_counted_as_failed():
    mailbox = Mailbox()
    mailbox.add_source("camera", 8)
    with Worker(mailbox, Heard(), CLOCK, 5.0):
        for number in range(5):
            mailbox.put(captured(number))
        until(lambda: not mailbox.total().waiting)
    assert mailbox.total() == Counts(captured=5, failed=5)


def test_a_model_whose_output_is_no_number_fails_its_frames_and_says_so_once(tmp_path, caplog):
    broken = tiny.model()
    table = tiny.weights()
    table[0] = np.nan
    broken.graph.initializer[0].CopyFrom(tiny.numpy_helper.from_array(table, "table"))
    release = tiny.Tiny(variants={"fp32": broken}).write(tmp_path / "nan")
    mailbox = Mailbox()
    mailbox.add_source("camera", 8)
    heard = Heard()
    with Worker(mailbox, heard, CLOCK, 5.0) as worker:
        worker.swap(load(tmp_path / "nan", release))
        for number in range(4):
            mailbox.put(captured(number))
        until(lambda: mailbox.total().failed == 4)
    assert not heard.answers
    assert len([r for r in caplog.records if "not finite" in r.message]) == 1


def test_a_frame_that_each_must_be_answered_is_answered_in_time_or_told(releases):
    mailbox, heard = Mailbox(), Heard()
    mailbox.add_source("trigger", 8)
    with Worker(mailbox, heard, CLOCK, 5.0) as worker:
        mailbox.put(replace(captured(0, "trigger"), due_s=CLOCK.monotonic() + 60))
        until(lambda: mailbox.total().failed == 1)
        worker.swap(load(*releases[0]))
        mailbox.put(replace(captured(1, "trigger"), due_s=CLOCK.monotonic() - 0.02))
        mailbox.put(replace(captured(2, "trigger"), due_s=CLOCK.monotonic() + 60))
        until(lambda: mailbox.total().processed == 1)
    assert [frame.number for frame, _, _ in heard.answers] == [2]
    assert [number for _, number, _ in heard.without] == [0, 1]
    assert heard.without[0][2] == "no model is in service"
    assert "after its deadline" in heard.without[1][2]


def test_the_model_that_is_swapped_out_is_freed(releases):
    mailbox = Mailbox()
    with Worker(mailbox, Heard(), CLOCK, 5.0) as worker:
        first = load(*releases[0])
        worker.swap(first)
        worker.swap(load(*releases[1]))
        with pytest.raises(BackendError):
            first.backend.run()


def test_a_frame_that_takes_long_shows(tmp_path):
    release = tiny.Tiny(variants={"fp32": tiny.endless(300_000)}).write(tmp_path / "slow")
    mailbox = Mailbox()
    mailbox.add_source("camera", None)
    with Worker(mailbox, Heard(), CLOCK, 10.0) as worker:
        worker.swap(load(tmp_path / "slow", release))
        assert worker.stalled_s() == 0.0
        mailbox.put(captured(0))
        until(lambda: worker.stalled_s() > 0.05)
        until(lambda: worker.stalled_s() == 0.0)


def until(reached, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.002)
