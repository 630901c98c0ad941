"""What a source's address may be, its password, its stillness; and folders that pictures come into."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tiny
from clips import write_clip, write_images
from heard import Heard
from PIL import Image

from edge_agent.config import SourceConfig
from edge_agent.sources import credentials, files
from edge_agent.sources.address import Address, Kind, parse
from edge_agent.sources.reader import check_source
from edge_agent.sources.still import FROZEN_S, Stillness
from skerry.errors import ConfigError, SourceError


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("rtsp://cam.local:554/stream?channel=1", Kind.RTSP, "cam.local"),
        ("RTSPS://10.0.0.7/", Kind.RTSP, "10.0.0.7"),
        ("csi:0", Kind.CSI, "csi0"),
        ("push:", Kind.PUSH, "push"),
        ("/dev/video99", Kind.DEVICE, "video99"),
    ],
)
def test_an_address_names_its_kind(text, kind, label):
    found = parse(text)
    assert (found.kind, found.label) == (kind, label)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rtsp://viewer:secret@cam/live", "rtsp://…@cam/live holds a user or a password"),
        ("rtsp:///live", "names no host"),
        ("http://cam/stream", "http:// is no source that Skerry reads; expected rtsp://"),
        ("nowhere.mp4", "is not there"),
    ],
)
def test_what_is_no_source_is_told_without_its_password(text, says):
    with pytest.raises(SourceError, match=says.replace("(", r"\(")) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_a_source_is_checked_before_anything_starts(tmp_path):
    clip, empty = write_clip(tmp_path / "clip.mp4", frames=3), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="watch = true is for folders"):
        check_source(SourceConfig(url=str(clip), watch=True))
    with pytest.raises(SourceError, match="holds no image"):
        check_source(SourceConfig(url=str(empty)))
    assert check_source(SourceConfig(url=str(empty), watch=True)) == Address(Kind.FOLDER, str(empty))
    with pytest.raises(SourceError, match='reader = "gstreamer"'):
        check_source(SourceConfig(url="csi:0"))
    with pytest.raises(ConfigError, match='pipeline "orin" is not known; there are software, jetson'):
        check_source(SourceConfig(url=str(clip), reader="gstreamer", pipeline="orin"))


def test_credentials_come_from_a_file_that_only_its_owner_reads(tmp_path):
    file = tmp_path / "credentials.toml"
    with pytest.raises(ConfigError, match=r"credentials.toml is not there; make it with mode 600"):
        credentials.find("gate", file, {})
    file.write_text('[gate]\nuser = "viewer"\npassword = "7h3"\n')
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600"):
        credentials.find("gate", file, {})
    file.chmod(0o600)
    found = credentials.find("gate", file, {})
    assert (found.user, found.password) == ("viewer", "7h3")
    assert "7h3" not in repr(found)
    with pytest.raises(ConfigError, match=r"has no table \[door\], only gate"):
        credentials.find("door", file, {})


def test_credentials_that_systemd_hands_over_win(tmp_path):
    (tmp_path / "gate").write_text("viewer:with:colons\n")
    found = credentials.find("gate", tmp_path / "none.toml", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (found.user, found.password) == ("viewer", "with:colons")


def test_an_hour_of_a_still_scene_is_no_alarm_and_a_minute_of_one_picture_is():
    random, scene, still = np.random.default_rng(0), np.full((48, 64), 90, np.uint8), Stillness()
    for second in range(3600):
        noisy = scene.copy()
        noisy[random.integers(48), random.integers(64)] ^= 1  # as little as a sensor can do
        assert not still.look(noisy, float(second))
    alarms = [second for second in range(60) if still.look(scene.copy(), 3600.0 + second)]
    assert alarms
    assert alarms[0] == FROZEN_S < 60


def test_two_pictures_alike_are_no_frozen_camera():
    still = Stillness()
    assert not still.look(np.zeros((4, 4), np.uint8), 0.0)
    assert not still.look(np.zeros((4, 4), np.uint8), 1000.0), "a camera of one picture in a quarter of an hour"


def test_a_watched_folder_gives_each_new_picture_once_it_is_whole(tmp_path):
    folder, heard, stop, found = write_images(tmp_path / "in", 2), Heard(), threading.Event(), []

    def unread(why: str) -> None:
        heard.no_verdict("in", None, why)

    reading = threading.Thread(target=lambda: found.extend(files.watched(folder, stop.wait, unread)))
    reading.start()
    time.sleep(0.3)
    Image.fromarray(tiny.coloured(1, 0)).save(folder / "new.png")
    whole = (folder / "new.png").read_bytes()
    half = folder / "half.png"
    for end in range(0, len(whole), max(1, len(whole) // 12)):  # a slow upload
        half.write_bytes(whole[:end])
        time.sleep(0.05)
    half.write_bytes(whole)
    (folder / "broken.png").write_bytes(b"no picture")
    deadline = time.monotonic() + 10
    while (len(found) < 2 or not heard.without) and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    reading.join(5)
    assert len(found) == 2, "the two that lay there before are left alone"
    assert "cannot read the image" in heard.without[0][2]
