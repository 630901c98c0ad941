"""What two bundles are compared on: labelled where labels lie, plain where none do, and never half of each."""

from __future__ import annotations

from pathlib import Path

import boxed
import pytest
import tiny
from PIL import Image

from compiler.comparison import footage
from compiler.comparison.footage import Footage
from compiler.comparison.unpacked import Opened
from skerry.errors import DatasetError
from skerry.manifest import Manifest, release_id


def opened(root: Path, made: tiny.Tiny) -> Opened:
    made.write(root)
    raw = (root / "bundle.json").read_bytes()
    return Opened(root, root, Manifest.parse(raw), release_id(raw))


@pytest.fixture
def colours(tmp_path: Path) -> Opened:
    return opened(tmp_path / "colours", tiny.Tiny())


@pytest.fixture
def cells(tmp_path: Path) -> Opened:
    return opened(tmp_path / "cells", boxed.Boxed())


def photos(folder: Path, each: int = 6, *, by_label: bool = True) -> Path:
    for channel, label in enumerate(tiny.COLOURS):
        place = folder / label if by_label else folder
        place.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            Image.fromarray(tiny.coloured(channel, 10 * number + channel)).save(place / f"{label}{number}.png")
    return folder


def labels(found: Footage) -> list[str | None]:
    return [sample.label for sample in found.samples]


def test_folders_that_are_labels_give_labels_and_a_plain_folder_gives_none(tmp_path: Path, colours: Opened) -> None:
    named = footage.read(photos(tmp_path / "named"), colours, 100)
    plain = footage.read(photos(tmp_path / "plain", by_label=False), colours, 100)

    assert labels(named).count("green") == 6
    assert named.unlabelled is None
    assert set(labels(plain)) == {None}
    assert "has no labels" in str(plain.unlabelled)


def test_fewer_frames_are_taken_evenly_and_how_many_there_were_is_kept(tmp_path: Path, colours: Opened) -> None:
    found = footage.read(photos(tmp_path / "data"), colours, 6)

    assert labels(found) == ["blue", "blue", "green", "green", "red", "red"]
    assert found.found == 18


def test_folders_that_are_no_labels_are_not_taken_for_some(tmp_path: Path, colours: Opened) -> None:
    data = photos(tmp_path / "data", 1)
    for number, label in enumerate(tiny.COLOURS):
        (data / label).rename(data / f"day{number}")

    found = footage.read(data, colours, 10)

    assert found.unlabelled == f"no folder in {data} is called like a label of the model (day0, day1, day2 …)"
    assert len(found.samples) == 3


def test_one_folder_that_is_no_label_among_labels_is_an_error(tmp_path: Path, colours: Opened) -> None:
    data = photos(tmp_path / "data", 1)
    (data / "red").rename(data / "rot")

    with pytest.raises(DatasetError, match="knows no class rot"):
        footage.read(data, colours, 10)


def test_boxes_are_read_and_without_them_there_are_plain_frames(tmp_path: Path, cells: Opened) -> None:
    data = boxed.photos(tmp_path / "data", 8)

    found = footage.read(data, cells, 100)
    for path in data.glob("*.xml"):
        path.unlink()
    plain = footage.read(data, cells, 100)

    assert [len(sample.boxes) for sample in found.samples] == [1] * 8
    assert "no VOC XML and no COCO JSON" in str(plain.unlabelled)


def test_without_a_folder_the_proofs_own_frames_are_taken(colours: Opened) -> None:
    found = footage.read(None, colours, 100)

    assert found.where == [(str(colours.root / "proof/frames.safetensors"), index) for index in range(6)]
    assert found.unlabelled == "no --data, so the frames are the 6 of colours's proof"


def test_what_cannot_be_read_is_named_as_the_datas_fault(tmp_path: Path, colours: Opened) -> None:
    data = photos(tmp_path / "data", 1, by_label=False)
    (data / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()

    with pytest.raises(DatasetError, match=r"cannot be read: .*broken\.jpg"):
        footage.read(data, colours, 10)
    with pytest.raises(DatasetError, match="holds no photo and no video; expected a folder per label"):
        footage.read(tmp_path / "empty", colours, 10)
    with pytest.raises(DatasetError, match="is not a folder"):
        footage.read(tmp_path / "nowhere", colours, 10)
