"""Processing in the graph against the runtime's own, on real frames: boxes, average precision, batches, and time.

Four nets (benchmarks/ingraph_cases.py), each in every variant that a bundle may hold (benchmarks/ingraph_ways.py):
every frame alone, and sixteen of them in batches of 2 to 16, beside the runtime's own answers around the same variant.
Average precision is over overlaps from 0.5 to 0.95, against people's boxes for the cells, against the runtime's own
boxes for the faces. TensorRT's variants are built, too, where its wheels are. Time is that of the whole path, one
thread, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from PIL import Image

from benchmarks.ingraph_cases import CASES, FACES, Boxes, Case
from benchmarks.ingraph_ways import FIXED, Literal, Net, Way, engines, ways
from benchmarks.results import Row, ratio, tell
from compiler.ingraph.difference import Difference
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.execution.processing import Frame, Preprocessor, iou, make_decoder
from skerry.manifest import InGraph, Interface
from skerry.wire import Answer

CAMERAS = {"640x480": (480, 640), "1280x720": (720, 1280), "1920x1080": (1080, 1920)}
_BOX_PX, _AP_POINTS, _INPUT_DB = 1.0, 0.1, 40.0
_BATCHES, _IN_BATCHES, _TURNS = range(1, 17), 16, 40


def compared(way: Way) -> list[Row]:
    """Every frame alone and the first in every batch, against the runtime's own processing around the same variant."""
    case, size = way.case, way.case.frames[0].shape[:2]
    graph, (plain, drawn) = InGraph(frame=size, answers=True), (way.run(way.model), way.run(way.drawn))
    wanted = [by_runtime(plain, case.interface, frame) for frame in case.frames]
    geometry = make_preprocessor(case.interface, graph)(case.frames[0], np.zeros((1, *size, 3), np.uint8))
    read, entry, found, first = make_reader(case.interface, graph), case.interface.inputs[0].name, Difference(), []
    for batch in _BATCHES:
        frames = case.frames if batch == 1 else case.frames[:_IN_BATCHES]
        for start in range(0, len(frames), batch):
            outputs = drawn(np.stack(frames[start : start + batch]))
            for index in range(len(outputs[entry])):
                one = {name: value[index : index + 1] for name, value in outputs.items()}
                tensor, answers = wanted[start + index]
                theirs = read(one, geometry)
                found.input.add(tensor, one[entry])
                found.add(answers, theirs, size, case.interface.postprocess)
                if batch == 1:
                    first.append(theirs)
    return difference_rows(case, found, [answers for _, answers in wanted], first)


def by_runtime(net: Net | Literal, described: Interface, frame: Frame) -> tuple[np.ndarray, list[Answer]]:
    """The input tensor and the answers."""
    tensor = np.zeros(described.inputs[0].shape, np.float32)
    geometry = Preprocessor(described)(frame, tensor)
    return tensor, make_decoder(described)(net(tensor), geometry)


def difference_rows(case: Case, found: Difference, ours: list[list[Answer]], theirs: list[list[Answer]]) -> list[Row]:
    """One line per figure; the bars are the issue's."""
    rows = [
        Row("input tensor, below its signal by", -found.input.db(), "dB", -_INPUT_DB),
        Row("answers without counterpart", found.alone if found.answers else None, "", 0, f"of {found.answers}"),
        Row("largest difference of scores", found.score, ""),
    ]
    if case.detects:
        truth = case.truth or [as_truth(answers) for answers in ours]
        before, after = average_precision(ours, truth), average_precision(theirs, truth)
        note = f"{before:.2f} and {after:.2f}, {'people' if case.truth else 'the runtime'} drew the boxes"
        rows += [
            Row("largest distance of boxes", found.box_px, "px", _BOX_PX),
            Row("average precision, apart by", abs(before - after), "points", _AP_POINTS, note),
        ]
    return rows


def as_truth(answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """The surer boxes of a frame as if they were true."""
    sure = [a for a in answers if a.score >= 0.5]
    return np.array([a.box for a in sure], np.float32).reshape(-1, 4), np.array([a.label for a in sure])


def average_precision(found: Sequence[Sequence[Answer]], truth: Boxes) -> float:
    """Mean over classes and over overlaps 0.5, 0.55 … 0.95, in percent: COCO's AP, all points of the curve."""
    labels = sorted({str(label) for _, there in truth for label in there})
    overlaps = np.arange(0.5, 0.96, 0.05)
    return float(np.mean([_precision(found, truth, label, overlap) for label in labels for overlap in overlaps])) * 100


def _precision(found: Sequence[Sequence[Answer]], truth: Boxes, label: str, overlap: float) -> float:
    boxes = [corners[there == label] for corners, there in truth]
    free = [np.ones(len(b), bool) for b in boxes]
    claims = sorted(((a.score, i, a.box) for i, f in enumerate(found) for a in f if a.label == label), reverse=True)
    hits = []
    for _, image, box in claims:
        shares = iou(np.array(box, np.float32), boxes[image]) * free[image] if len(boxes[image]) else np.zeros(1)
        hits.append(shares.max() >= overlap)
        if hits[-1]:
            free[image][shares.argmax()] = False
    right = np.cumsum(hits)
    if not len(right):
        return 0.0
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    return float(precision[np.array(hits)].sum() / sum(len(b) for b in boxes))


def timed(way: Way, camera: tuple[int, int]) -> Row:
    """Median of the paired ratios, graph to runtime; and each one's median in milliseconds."""
    case = _for_camera(way.case, camera)
    graph, plain, drawn = InGraph(frame=camera, answers=True), Net(way.model), Net(replace(way, case=case).drawn)
    frame, decode, read = case.frames[0], make_decoder(case.interface), make_reader(case.interface, graph)
    preprocess, prepare = Preprocessor(case.interface), make_preprocessor(case.interface, graph)
    tensor, buffer = np.zeros(case.interface.inputs[0].shape, np.float32), np.zeros((1, *camera, 3), np.uint8)

    def usual() -> object:
        geometry = preprocess(frame, tensor)
        return decode(plain(tensor), geometry)

    def whole() -> object:
        geometry = prepare(frame, buffer)
        return read(drawn(buffer), geometry)

    turns = [(seconds(whole), seconds(usual)) for _ in range(_TURNS)][5:]
    these, those = zip(*turns, strict=True)
    note = (
        f"{statistics.median(these) * 1e3:.1f} ms in the graph, {statistics.median(those) * 1e3:.1f} ms by the runtime"
    )
    return Row(f"{camera[1]}x{camera[0]}: time", ratio(these, those), "x", None, note)


def _for_camera(case: Case, camera: tuple[int, int]) -> Case:
    """The case at work: one frame of a camera's size, and the threshold that is usual."""
    usual = msgspec.structs.replace(case.interface.postprocess, min_score=0.5 if case.detects else 0.0)
    frame = np.asarray(Image.fromarray(case.frames[0]).resize((camera[1], camera[0])))
    return replace(case, interface=msgspec.structs.replace(case.interface, postprocess=usual), frames=[frame])


def seconds(function: Callable[[], object]) -> float:
    """One call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def equal(case: Case) -> list[Row]:
    """How far each variant of a case is from the runtime's own processing around it, and TensorRT's engines of it."""
    rows = []
    for way in ways(case):
        found = [*compared(way), engines(way)] if way.precision else compared(way)
        rows += [named(f"{case.name}, {way.name}: {row.what}", row) for row in found]
    return rows


def times(case: Case) -> list[Row]:
    """The whole path of what ONNX Runtime runs; the fixed shapes, which are not made for it, at one size."""
    rows = []
    for way in [way for way in ways(case) if not way.precision]:
        cameras = [*CAMERAS.values()][: 1 if way.suppression is FIXED else None]
        rows += [named(f"{case.name}, {way.name}, {row.what}", row) for row in (timed(way, c) for c in cameras)]
    return rows


def main(names: Sequence[str] = (), parts: Sequence[str] = ("equal", "times")) -> bool:
    """Measures the named cases, or all, and tells; whether the bars were met."""
    if not FACES.is_dir():
        print(f"{FACES} is not there: the nets of this measurement do not come with the repository", file=sys.stderr)
        return False
    what = {"equal": equal, "times": times}
    cases = [CASES[name]() for name in names or CASES]
    return tell("ingraph", [row for part in parts for case in cases for row in what[part](case)])


def named(what: str, row: Row) -> Row:
    """The row under another name."""
    return replace(row, what=what)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("names", nargs="*", metavar="CASE", help=", ".join(CASES))
    options.add_argument("--part", choices=["equal", "times"], action="append")
    chosen = options.parse_args()
    raise SystemExit(0 if main(chosen.names, chosen.part or ("equal", "times")) else 1)
