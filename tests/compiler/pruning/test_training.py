"""What `--train` gives: what trains, what chooses the epoch, and what is left out as accuracy is counted on it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny
from PIL import Image

from compiler.data import dataset
from compiler.pruning import training
from compiler.pruning.prune import FineTune, Schedule
from skerry.errors import CalibrationError, DatasetError, UsageError
from skerry.manifest import Interface


def interface() -> Interface:
    return tiny.Tiny().interface()


def photographed(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def sorted_photos(tmp_path: Path) -> Path:
    for number, label in enumerate(tiny.COLOURS):
        photographed(tmp_path / "train" / label, 30, 100 * number)
    return tmp_path / "train"


def read(folder: Path, counted: set[str] | None = None) -> FineTune:
    return training.read(folder, interface(), counted or set(), Schedule())


def test_a_folder_per_class_teaches_labels(sorted_photos: Path) -> None:
    found = read(sorted_photos)

    every = [*found.train, *found.held_out]
    assert len(every) == 90
    assert {p.label for p in every} == {0, 1, 2}
    assert all(Path(p.path).parent.name == dataset.labels(interface())[p.label] for p in every)
    assert 0 < len(found.held_out) < 30
    assert not {p.digest for p in found.train} & {p.digest for p in found.held_out}


def test_photos_without_labels_teach_what_the_dense_net_says(tmp_path: Path) -> None:
    found = read(photographed(tmp_path / "photos", 40))

    assert {p.label for p in [*found.train, *found.held_out]} == {training.UNLABELLED}


def test_what_accuracy_is_counted_on_is_left_out(sorted_photos: Path) -> None:
    counted = {p.digest for p in read(sorted_photos).train[:7]} | {p.digest for p in read(sorted_photos).held_out[:1]}

    found = read(sorted_photos, counted)

    assert set(found.left_out) == counted
    assert not {p.digest for p in [*found.train, *found.held_out]} & counted
    assert read(sorted_photos, set(found.left_out)).digest() == found.digest() != read(sorted_photos).digest()


def test_names_and_places_do_not_matter(sorted_photos: Path, tmp_path: Path) -> None:
    before = read(sorted_photos)
    for number, photo in enumerate(sorted((sorted_photos / tiny.COLOURS[0]).iterdir())):
        photo.rename(photo.with_name(f"renamed-{99 - number}.png"))

    after = read(sorted_photos.rename(tmp_path / "moved"))

    assert after.digest() == before.digest()
    assert [p.digest for p in after.train] == [p.digest for p in before.train]


def test_another_label_is_another_set(sorted_photos: Path) -> None:
    before = read(sorted_photos)
    photo = Path(before.train[0].path)
    other = next(label for label in tiny.COLOURS if label != photo.parent.name)

    photo.rename(sorted_photos / other / "moved.png")

    assert read(sorted_photos).digest() != before.digest()


def test_what_cannot_teach_is_refused_with_what_to_do(sorted_photos: Path, tmp_path: Path) -> None:
    every = {p.digest for p in read(sorted_photos).train}
    with pytest.raises(UsageError, match=r"--train .*nowhere is not a folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"no training data .* name a folder with --train"):
        read(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"90 pictures, \d+ of which lie in --eval too: 0 are left to train with"):
        read(sorted_photos, every)
    (sorted_photos / "violet").mkdir()
    with pytest.raises(DatasetError, match="knows no class violet"):
        read(sorted_photos)


def test_a_schedule_that_nobody_knows_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"epochs": 1, "moons": 2}, Schedule)
