"""Boxes as people keep them: Pascal VOC's XML, one file an image, and COCO's JSON, one file for all.

Both come from outside. XML with a document type is refused: entities are how a small file fills a machine's memory or
reads its files. Sizes and depth are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET  # only its tree: the parser below refuses entities
from xml.parsers import expat

import msgspec

from skerry.documents import parse
from skerry.errors import FormatError

_MAX_XML, _MAX_JSON = 4 << 20, 1 << 30  # bytes
_MAX_DEPTH = 32

K = TypeVar("K")
V = TypeVar("V")


class Box(msgspec.Struct, frozen=True):
    """One thing to be found.

    Attributes:
        box: (x0, y0, x1, y1) as fractions of the frame's width and height.
        aside: neither to be found nor wrong if found: VOC's "difficult", COCO's "iscrowd", and what has no area,
            which nothing can overlap.
    """

    label: str
    box: tuple[float, float, float, float]
    aside: bool = False


class Annotated(msgspec.Struct, frozen=True):
    """One image as its annotation names it; boxes in pixels (x0, y0, x1, y1)."""

    file: str
    boxes: list[Box]

    def scaled(self, width: int, height: int, where: str) -> list[Box]:
        """The boxes as fractions of an image of that size.

        Raises:
            FormatError: one lies outside of the image, or is none.
        """
        return [_scaled(box, width, height, where) for box in self.boxes]


def _scaled(found: Box, width: int, height: int, where: str) -> Box:
    x0, y0, x1, y1 = found.box
    if not (
        all(map(math.isfinite, found.box)) and x0 <= x1 and y0 <= y1 and x0 < width and y0 < height and min(x1, y1) >= 0
    ):
        raise FormatError(f"{where}: the box {x0:g} {y0:g} {x1:g} {y1:g} is none of an image of {width}x{height}")
    left, top, right, bottom = (min(1.0, max(0.0, v)) for v in (x0 / width, y0 / height, x1 / width, y1 / height))
    return Box(found.label, (left, top, right, bottom), found.aside or left == right or top == bottom)


# --- Pascal VOC ----------------------------------------------------------------------------------------------------


def read_voc(path: Path) -> Annotated:
    """One VOC file.

    Raises:
        FormatError: not XML, with a document type, too large, or without what a VOC annotation has.
    """
    root = _tree(path)
    boxes = []
    for thing in root.findall("object"):
        name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        if not name or box is None:
            raise FormatError(f"{path}: an <object> without <name> or <bndbox>; expected Pascal VOC's")
        x0, y0, x1, y1 = (_number(box.findtext(key), f"{path}: <{key}>") for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append(Box(name, (x0, y0, x1, y1), (thing.findtext("difficult") or "0").strip() == "1"))
    return Annotated((root.findtext("filename") or "").strip(), boxes)


def _number(text: str | None, what: str) -> float:
    try:
        return float(text or "")
    except ValueError as exc:
        raise FormatError(f"{what}: expected a number of pixels, found {text!r}") from exc


def _tree(path: Path) -> ET.Element:
    """Parses XML that may come from anyone."""
    if path.stat().st_size > _MAX_XML:
        raise FormatError(f"{path} is larger than any annotation of one image ({_MAX_XML >> 20} MiB)")
    builder, depth = ET.TreeBuilder(), 0
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise FormatError(f"{path}: elements {depth} deep; expected Pascal VOC's few")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise FormatError(f"{path} has a document type or entities; an annotation needs none, and is refused with them")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as exc:
        raise FormatError(f"{path} is not XML: {exc}") from exc
    return builder.close()


# --- COCO ----------------------------------------------------------------------------------------------------------


class _CocoImage(msgspec.Struct):
    id: int | str
    file_name: str


class _CocoCategory(msgspec.Struct):
    id: int
    name: str


class _CocoBox(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_CocoBox]
    categories: list[_CocoCategory]


def read_coco(path: Path) -> list[Annotated]:
    """A COCO file: every image that it lists, also those without a box.

    Raises:
        FormatError: not COCO's JSON, or it refers to what it does not list.
    """
    if path.stat().st_size > _MAX_JSON:
        raise FormatError(f"{path} is larger than {_MAX_JSON >> 30} GiB")
    found = parse(path.read_bytes(), _Coco, f"{path}: expected COCO's images, annotations and categories")
    names = {category.id: category.name for category in found.categories}
    boxes: dict[int | str, list[Box]] = {image.id: [] for image in found.images}
    for number, thing in enumerate(found.annotations):
        where = f"{path}: annotation {number}"
        x, y, width, height = thing.bbox
        label = _known(names, thing.category_id, f"{where}: category")
        _known(boxes, thing.image_id, f"{where}: image").append(
            Box(label, (x, y, x + width, y + height), bool(thing.iscrowd))
        )
    return [Annotated(image.file_name, boxes[image.id]) for image in found.images]


def _known(table: Mapping[K, V], key: K, what: str) -> V:
    if key not in table:
        raise FormatError(f"{what} {key} is not listed in the file")
    return table[key]
