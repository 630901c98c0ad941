"""Sources: files and directories, at their own rate or as fast as they go."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip, write_images
from heard import Heard

from edge_agent.config import SourceConfig
from edge_agent.mailbox import Mailbox
from edge_agent.sources.reader import Reader, check_source
from skerry.clock import SystemClock
from skerry.errors import SourceError


def make(config: SourceConfig, mailbox: Mailbox, heard: Heard, finished: list[str] | None = None) -> Reader:
    ended = [].append if finished is None else finished.append
    return Reader(config, None, mailbox, SystemClock(), heard, ended, random.Random(0).uniform)


def play(config: SourceConfig, seconds: float = 20.0) -> tuple[list[int], float, Reader]:
    """The numbers of the frames that a source gives until it ends, how long it took, and its reader."""
    mailbox, finished, numbers = Mailbox(), [], []
    reader = make(config, mailbox, Heard(), finished)
    started = time.monotonic()
    reader.start()
    while not finished or mailbox.total().waiting:
        assert time.monotonic() - started < seconds
        if frame := mailbox.take(0.01):
            assert frame.pixels().shape[2] == 3
            numbers.append(frame.number)
            mailbox.done(frame, failed=False)
    assert reader.join(5)
    return numbers, time.monotonic() - started, reader


def test_every_frame_of_a_clip_comes_in_order_when_asked_for(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=30)
    numbers, _, _ = play(SourceConfig(url=str(clip), policy="every", realtime=False, queue=2))
    assert numbers == list(range(30))


def test_a_clip_plays_at_its_own_rate(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=20, rate=25)
    numbers, seconds, _ = play(SourceConfig(url=str(clip)))
    assert seconds > 19 / 25
    assert len(numbers) > 10


def test_a_directory_of_images_comes_by_name(tmp_path):
    folder = write_images(tmp_path / "images", 5)
    numbers, _, _ = play(SourceConfig(url=str(folder), policy="every", realtime=False))
    assert numbers == [0, 1, 2, 3, 4]


def test_a_looping_clip_goes_on_counting(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    mailbox = Mailbox()
    reader = make(SourceConfig(url=str(clip), loop=True, realtime=False, policy="every"), mailbox, Heard())
    reader.start()
    numbers = []
    while len(numbers) < 17:
        frame = mailbox.take(5.0)
        numbers.append(frame.number)
        mailbox.done(frame, failed=False)
    reader.stop()
    mailbox.close()
    assert reader.join(5)
    assert numbers == list(range(17))


def test_a_looping_source_that_breaks_is_tried_again_and_comes_back(tmp_path, caplog):
    clip = write_clip(tmp_path / "clip.mp4", frames=5)
    whole = clip.read_bytes()
    mailbox, heard = Mailbox(), Heard()
    reader = make(SourceConfig(url=str(clip), loop=True), mailbox, heard)
    clip.write_bytes(b"not a video any more")
    reader.start()
    until(lambda: reader.failing is not None)
    clip.write_bytes(whole)
    until(lambda: mailbox.total().captured > 3 and reader.failing is None)
    reader.stop()
    mailbox.close()
    assert reader.join(5)
    assert len([r for r in caplog.records if "lost" in r.message]) == 1
    assert [state for _, state, _ in heard.changes] == ["lost", "back"]


def test_a_clip_that_is_cut_off_gives_what_is_whole(tmp_path):
    clip = write_clip(tmp_path / "clip.avi", frames=40)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    numbers, _, _ = play(SourceConfig(url=str(clip), policy="every", realtime=False))
    assert 0 < len(numbers) < 40
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _path: None, "is not there; expected rtsp://host/path"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: path.write_bytes(b"hello"), "neither a video"),
    ],
)
def test_a_wrong_source_is_told_at_the_start(tmp_path, make, says):
    path = tmp_path / "source"
    make(path)
    with pytest.raises(SourceError, match=says):
        check_source(SourceConfig(url=str(path)))


def test_a_file_that_only_looks_like_a_video_is_told_at_the_start(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(SourceError, match="cannot open the video"):
        check_source(SourceConfig(url=str(path)))


def until(reached, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


def test_the_helper_writes_what_it_says(tmp_path: Path):
    assert write_clip(tmp_path / "clip.mp4", frames=3).stat().st_size > 0
