"""Labelled samples: read as people keep them, refused in words, and split so that no picture is on both sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import drawn
import pytest
from needs import missing
from pictures import write_noise

from compiler.data import dataset
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from skerry.errors import DatasetError, FormatError
from skerry.manifest import Detection, Interface, Preprocess

BCCD = Path(__file__).parents[3].parent / "shared" / "data" / "bccd"


def classifier(labels: list[str]) -> Interface:
    return drawn.interface({"scores": [1, 3]}, Preprocess(resize="stretch"), labels=labels)


def detector(labels: list[str]) -> Interface:
    outputs = {"boxes": [1, 5, 4], "scores": [1, 5, len(labels)]}
    answers = Detection(boxes="boxes", scores="scores", background=0)
    return drawn.interface(outputs, Preprocess(resize="stretch"), answers, labels=labels)


def picture(path: Path, seed: int) -> Path:
    return write_noise(path, (12, 16), seed)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two of each class."""
    for seed, name in enumerate(["cat", "cat", "dog", "dog", "hot dog", "hot dog"]):
        picture(tmp_path / "pets" / name / f"{seed}.png", seed)
    return tmp_path / "pets"


# A folder per class


def test_a_folder_per_class_is_read_by_the_names_of_the_labels(pets: Path) -> None:
    found = dataset.read(pets, classifier(["cat", "dog", "hot dog"]))

    assert [sample.label for sample in found] == ["cat", "cat", "dog", "dog", "hot dog", "hot dog"]


def test_case_blanks_dashes_and_underscores_do_not_matter(pets: Path) -> None:
    (pets / "hot dog").rename(pets / "Hot_Dog")

    found = dataset.read(pets, classifier(["cat", "dog", "hot-dog"]))

    assert {sample.label for sample in found} == {"cat", "dog", "hot-dog"}


def test_a_net_without_labels_has_classes_by_number(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"class {number}" / "a.png", number)

    assert [s.label for s in dataset.read(tmp_path, classifier([]))] == ["class 0", "class 1", "class 2"]


def test_a_class_that_the_model_does_not_know_is_named_with_the_nearest(pets: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"knows no class dog; its labels are cat, dogs, hot dog; did you mean 'dogs'"
    ):
        dataset.read(pets, classifier(["cat", "dogs", "hot dog"]))


def test_a_class_that_is_missing_is_named_and_an_empty_folder_leaves_it_out(pets: Path) -> None:
    labels = ["cat", "dog", "hot dog", "fish"]
    with pytest.raises(DatasetError, match="no folder for 1 of 4 classes: fish; add them, or an empty folder"):
        dataset.read(pets, classifier(labels))
    (pets / "fish").mkdir()

    assert len(dataset.read(pets, classifier(labels))) == 6


def test_what_cannot_be_read_is_named_before_any_work(pets: Path) -> None:
    (pets / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    whole = (pets / "dog" / "2.png").read_bytes()
    (pets / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DatasetError, match=r"2 files cannot be read: .*torn\.jpg, .*2\.png"):
        dataset.read(pets, classifier(["cat", "dog", "hot dog"]))


def test_the_same_picture_twice_is_one_sample(pets: Path) -> None:
    shutil.copy(pets / "cat" / "0.png", pets / "cat" / "again.png")

    assert len(dataset.read(pets, classifier(["cat", "dog", "hot dog"]))) == 6


def test_the_same_picture_in_two_classes_is_refused(pets: Path) -> None:
    shutil.copy(pets / "cat" / "0.png", pets / "dog" / "puss.png")

    with pytest.raises(DatasetError, match=r"0\.png and .*puss\.png are the same picture and are labelled differently"):
        dataset.read(pets, classifier(["cat", "dog", "hot dog"]))


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_samples_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for interface in (classifier(["cat"]), detector(["nothing", "cat"])):
        with pytest.raises(DatasetError, match="expected"):
            dataset.read(tmp_path / name, interface)


# Boxes

VOC = """<annotation><filename>of another.jpg</filename>{}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def voc(folder: Path, *objects: str) -> Path:
    picture(folder / "a.png", 1)
    (folder / "a.xml").write_text(VOC.format("".join(objects)))
    return folder


def test_boxes_of_voc_are_fractions_of_the_image(tmp_path: Path) -> None:
    things = [("cat", 0, 4, 3, 8, 12), ("cat", 1, -5, 0, 16, 99), ("cat", 0, 4, 4, 4, 8)]
    voc(tmp_path, *(OBJECT.format(*thing) for thing in things))

    (found,) = dataset.read(tmp_path, detector(["nothing", "cat"]))

    assert [box.box for box in found.boxes[:2]] == [(0.25, 0.25, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)]
    assert [box.aside for box in found.boxes] == [False, True, True]  # the last has no width


def test_boxes_of_coco_are_read_too(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", 1)
    picture(tmp_path / "images" / "b.png", 2)
    (tmp_path / "boxes.json").write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.png", "width": 1}, {"id": 8, "file_name": "images/b.png"}],
                "categories": [{"id": 3, "name": "cat"}],
                "annotations": [{"image_id": 7, "category_id": 3, "bbox": [4, 3, 4, 9], "iscrowd": 0}],
            }
        )
    )

    first, second = dataset.read(tmp_path, detector(["nothing", "cat"]))

    assert [box.box for box in first.boxes] == [(0.25, 0.25, 0.5, 1.0)]
    assert second.boxes == ()


BOMB = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
READER = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "document type or entities"),
        (READER, "document type or entities"),
        ("<a>" * 40 + "</a>" * 40, "elements 33 deep"),
        ("<annotation><object>", "is not XML"),
        ("", "is not XML"),
        ("<annotation>&undefined;</annotation>", "is not XML"),
        (VOC.format("<object><name>cat</name></object>"), "without <name> or <bndbox>"),
        (VOC.format(OBJECT.format("cat", 0, "left", 1, 2, 3)), "<xmin>: expected a number of pixels, found 'left'"),
        (VOC.format(OBJECT.format("cat", 0, 9, 5, 5, 9)), "is none of an image of 16x12"),
        (VOC.format(OBJECT.format("cat", 0, 20, 0, 30, 9)), "is none of an image of 16x12"),
        (VOC.format(OBJECT.format("cat", 0, "nan", 0, 30, 9)), "is none of an image of 16x12"),
    ],
    ids=["bomb", "reader", "deep", "cut", "empty", "entity", "bare", "words", "inside out", "outside", "nan"],
)
def test_hostile_or_broken_xml_is_refused_in_words(tmp_path: Path, text: str, why: str) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "a.xml").write_text(text)

    with pytest.raises(FormatError, match=why) as refusal:
        dataset.read(tmp_path, detector(["nothing", "cat"]))
    assert "a.png" in str(refusal.value) or "a.xml" in str(refusal.value)


def test_endless_xml_is_not_even_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "a.xml").write_bytes(b"<annotation>" + b" " * (5 << 20) + b"</annotation>")

    with pytest.raises(FormatError, match="larger than any annotation"):
        dataset.read(tmp_path, detector(["nothing", "cat"]))


def test_a_box_of_an_unknown_class_a_missing_one_and_a_bare_image_are_named(tmp_path: Path) -> None:
    voc(tmp_path, OBJECT.format("cat", 0, 1, 1, 5, 5))

    with pytest.raises(DatasetError, match="boxes of cat; the model knows bird"):
        dataset.read(tmp_path, detector(["nothing", "bird"]))
    with pytest.raises(DatasetError, match="no box of dog"):
        dataset.read(tmp_path, detector(["nothing", "cat", "dog"]))
    picture(tmp_path / "b.png", 2)
    with pytest.raises(DatasetError, match=r"1 images have no annotation: .*b\.png"):
        dataset.read(tmp_path, detector(["nothing", "cat"]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"images": [{"id": 1, "file_name": "gone.png"}]}, "lists gone.png, which is not below"),
        ({"annotations": [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "image 9 is not listed"),
        ({"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category 9 is not listed"),
        ({"categories": None}, "expected COCO's images, annotations and categories"),
    ],
)
def test_coco_that_does_not_add_up_is_refused(tmp_path: Path, change: dict, why: str) -> None:
    picture(tmp_path / "a.png", 1)
    whole = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 3, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps({**whole, **change}))

    with pytest.raises((DatasetError, FormatError), match=why):
        dataset.read(tmp_path, detector(["nothing", "cat"]))


@pytest.mark.slow
def test_the_blood_cells_are_read_whole() -> None:
    folder = BCCD if BCCD.is_dir() else missing(f"{BCCD} is not here")

    found = dataset.read(folder, detector(["nothing", "RBC", "WBC", "Platelets"]))

    assert len(found) == 364
    assert sum(len(sample.boxes) for sample in found) > 4800
    parts = dataset.split(found, set())
    assert len(parts.report) > len(parts.search) > len(parts.ranking) > 20


# Which sample is for what


def samples(count: int, start: int = 0) -> list[Labelled]:
    digest = "{:08x}" + "0" * 56
    scattered = [(number * 2654435761) % 2**32 for number in range(start, start + count)]
    return [
        Labelled(sample=Sample(f"/s/{number:05}.png", 0, digest.format(value)), label="cat")
        for number, value in enumerate(scattered, start)
    ]


def digests(part: list[Labelled]) -> set[str]:
    return {sample.sample.digest for sample in part}


def test_no_sample_is_for_two_things() -> None:
    parts = dataset.split(samples(3000), set())
    each = [digests(parts.ranking), digests(parts.search), digests(parts.report)]

    assert not each[0] & each[1]
    assert not each[1] & each[2]
    assert not each[0] & each[2]
    assert len(each[0]) == 64
    assert len(each[1]) == pytest.approx(750, rel=0.1)
    assert len(each[2]) == pytest.approx(1950, rel=0.1)


def test_a_sample_keeps_its_side_when_the_folder_grows() -> None:
    before, after = dataset.split(samples(500), set()), dataset.split(samples(900), set())

    assert digests(before.report) < digests(after.report)
    assert digests(before.search) < digests(after.search)
    assert not digests(after.search) & digests(before.report)
    assert not digests(after.ranking) & digests(before.report)


def test_what_calibrates_or_judges_parity_is_no_sample() -> None:
    every = samples(400)
    taken = digests(every[:100])

    parts = dataset.split(every, taken)

    assert parts.taken == 100
    assert not taken & (digests(parts.ranking) | digests(parts.search) | digests(parts.report))


def test_too_few_samples_are_refused_with_what_was_taken() -> None:
    every = samples(60)

    with pytest.raises(DatasetError, match="60 labelled samples, 59 of which are frames of --calib too"):
        dataset.split(every, digests(every[:59]))


def test_how_many_samples_to_add_for_so_many_that_report():
    """Of 20 samples, 13 report."""
    assert [dataset.to_add(count) for count in (0, 1, 13, 265)] == [0, 2, 20, 408]
