"""Which frames calibrate and which judge: never the same one, and always the same split."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from pictures import write_broken
from PIL import Image

from compiler.data import samples
from compiler.data.samples import MAX_CALIBRATION, MAX_FRAMES_PER_VIDEO, MAX_REPORT, Samples
from skerry.errors import CalibrationError, SourceError
from skerry.execution.frames import read_image


def photos(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:04}.ppm").write_bytes(b"P6 1 1 255\n" + number.to_bytes(3, "big"))
    return folder


def film(path: Path, frames: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((32, 32, 3), number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def split(found: Samples) -> tuple[set[str], set[str]]:
    return {s.digest for s in found.calibration}, {s.digest for s in found.report}


def test_no_frame_both_calibrates_and_judges(tmp_path: Path) -> None:
    found = samples.collect([photos(tmp_path / "a", 200), film(tmp_path / "b.mp4", 60)])

    calibration, report = split(found)
    assert calibration.isdisjoint(report)
    assert len(calibration) + len(report) == 260
    assert 0.1 < len(report) / 260 < 0.3


def test_a_copy_of_a_photo_under_another_name_is_the_same_frame(tmp_path: Path) -> None:
    once = samples.collect([photos(tmp_path / "a", 50)])
    shutil.copytree(tmp_path / "a", tmp_path / "z")

    twice = samples.collect([tmp_path / "a", tmp_path / "z"])

    assert split(twice) == split(once)
    assert len(twice.calibration) == len(once.calibration)


def test_a_photo_keeps_its_side_when_the_folder_grows(tmp_path: Path) -> None:
    few_calibrate, few_judge = split(samples.collect([photos(tmp_path / "a", 80)]))

    many_calibrate, many_judge = split(samples.collect([photos(tmp_path / "a", 80, first=80)]))

    assert few_calibrate < many_calibrate
    assert few_judge < many_judge


def test_the_split_does_not_care_where_the_folder_lies_or_how_it_was_named(tmp_path: Path) -> None:
    photos(tmp_path / "here" / "a", 60)
    film(tmp_path / "here" / "b.mp4", 30)
    before = samples.collect([tmp_path / "here"])

    (tmp_path / "here").rename(tmp_path / "there")
    after = samples.collect([tmp_path / "there" / "b.mp4", tmp_path / "there" / "a"])

    assert split(after) == split(before)
    assert after.digest() == before.digest()


def test_the_calibration_set_has_one_name_whatever_its_folders_are_called(tmp_path: Path) -> None:
    folders = [photos(tmp_path / "morning", 60), photos(tmp_path / "night", 60, first=60)]
    before = samples.collect(folders)

    (tmp_path / "morning").rename(tmp_path / "zenith")  # now it sorts behind the other
    after = samples.collect([tmp_path / "zenith", tmp_path / "night"])

    assert split(after) == split(before)
    assert after.digest() == before.digest()


def test_another_frame_is_another_set(tmp_path: Path) -> None:
    before = samples.collect([photos(tmp_path / "a", 60)])
    (changed,) = before.calibration[:1]

    Path(changed.path).write_bytes(b"P6 1 1 255\nxyz")

    assert samples.collect([tmp_path / "a"]).digest() != before.digest()


def test_a_long_video_gives_frames_from_its_whole_length(tmp_path: Path) -> None:
    found = samples.collect([film(tmp_path / "long.mp4", 3 * MAX_FRAMES_PER_VIDEO + 10)])

    indices = sorted(s.index for s in [*found.calibration, *found.report])
    assert indices[0] == 0
    assert indices[-1] >= 3 * MAX_FRAMES_PER_VIDEO
    assert set(np.diff(indices)) == {3}
    assert len(indices) <= MAX_FRAMES_PER_VIDEO + MAX_FRAMES_PER_VIDEO // 3


def test_there_is_an_end_to_how_many_frames_are_taken(tmp_path: Path) -> None:
    found = samples.collect([photos(tmp_path / "a", 700)])

    assert len(found.calibration) == MAX_CALIBRATION
    assert len(found.report) == MAX_REPORT


def test_each_set_is_in_the_order_in_which_its_files_are_read_once(tmp_path: Path) -> None:
    found = samples.collect([film(tmp_path / "b.mp4", 40), photos(tmp_path / "a", 40)])

    for group in (found.calibration, found.report):
        assert group == sorted(group, key=lambda s: (s.path, s.index))


def test_nothing_there_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")

    with pytest.raises(CalibrationError, match=r"empty: expected photos or videos .*\.jpg.*--calib"):
        samples.collect([tmp_path / "empty"])
    with pytest.raises(CalibrationError, match="nowhere is not there; expected a folder of photos or videos"):
        samples.collect([tmp_path / "nowhere"])
    with pytest.raises(CalibrationError, match="--calib"):
        samples.collect([])


def test_a_video_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(bytes(range(256)) * 20)

    with pytest.raises(SourceError, match=r"cannot open the video .*broken\.mp4"):
        samples.collect([tmp_path])


@pytest.mark.parametrize("how", ["text", "half", "chunk"])
def test_a_damaged_photo_is_a_source_error_whatever_the_decoder_raises(tmp_path: Path, how: str) -> None:
    file = write_broken(tmp_path / "photo.png", how)
    with pytest.raises(SourceError, match=r"cannot read the image .*photo\.png"):
        read_image(file)


def test_frames_are_spread_over_a_films_length_and_over_the_files(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 40)
    photos(tmp_path / "b", 20)
    found = samples.collect([tmp_path]).calibration

    chosen = samples.spread(found, 8)

    assert len(chosen) == 8
    of_the_film = [sample.index for sample in chosen if sample.path.endswith("a.mp4")]
    assert 2 <= len(of_the_film) <= 7
    assert max(of_the_film) - min(of_the_film) > 15


def test_how_files_are_called_does_not_change_what_is_chosen(tmp_path: Path) -> None:
    photos(tmp_path / "a", 30)
    film(tmp_path / "b.mp4", 30)
    before = samples.spread(samples.collect([tmp_path]).calibration, 8)

    (tmp_path / "a").rename(tmp_path / "z")
    after = samples.spread(samples.collect([tmp_path]).calibration, 8)

    assert [sample.digest for sample in after] == [sample.digest for sample in before]


def test_few_frames_are_all_taken(tmp_path: Path) -> None:
    found = samples.collect([photos(tmp_path / "a", 12)]).calibration

    assert set(samples.spread(found, 100)) == set(found)


def test_every_damaged_photo_is_named_before_any_work(tmp_path):
    photos = [tmp_path / f"{number:02}.png" for number in range(12)]
    for number, photo in enumerate(photos):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(photo)
    samples.check_readable(samples.collect([tmp_path]))
    write_broken(photos[3], "half")
    for photo in photos[5:11]:
        photo.write_text(f"no photo: {photo.name}")

    with pytest.raises(CalibrationError) as refused:
        samples.check_readable(samples.collect([tmp_path]))

    said = str(refused.value)
    assert "7 files of --calib cannot be read; cannot read the image" in said
    assert all(photo.name in said for photo in [photos[3], *photos[5:9]])
    assert said.endswith("and 2 more")
