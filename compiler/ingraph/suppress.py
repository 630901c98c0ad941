"""Non-maximum suppression in a graph: exactly the greedy, class-wise one of `skerry.execution.processing.suppress`.

Two forms of it, since no single one serves both runtimes:

- "operator" is ONNX's NonMaxSuppression: fast on ONNX Runtime. TensorRT-RTX 1.7 parses it and has no kernel for it;
  TensorRT's own considers 2,000 to 5,000 boxes of an image at most, leaves ties open (its operator reference, NMS), and
  gives a shape that depends on the data.
- "fixed" has fixed shapes and ordinary operators: the best candidates of all classes, a matrix that says who overlaps
  whom, and a loop that ends when nothing changes any more. Each turn keeps whoever no kept better one overlaps: after
  turn n the n best are decided as greedy suppression decides them, so the fixed point is the greedy result (Zheng et
  al., "Enhancing Geometric Factors in Model Learning and Inference", IEEE Trans. Cybernetics 2022, section IV).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from compiler.ingraph.drawing import PREFIX, Drawing
from skerry.manifest import Detection

LOWEST = float(np.finfo(np.float32).min)  # the score of what is not there

MAX_CANDIDATES = 3840  # the most that TensorRT's TopK gives
_LOOP = f"{PREFIX}loop/"


@dataclass(frozen=True)
class Suppression:
    """Which form; ``candidates`` is how many of an image's scores the fixed one looks at, over all its classes.

    What lies beyond them matters only if fewer than ``max_boxes`` of those are kept. It is counted, so that a reader
    can tell.
    """

    fixed: bool = False
    candidates: int = 1000


BY_OPERATOR = Suppression()


@dataclass(frozen=True)
class Candidates:
    """All boxes and their scores.

    Attributes:
        boxes: [N, count, 4], corners in input pixels.
        scores: [N, classes, count], without the background.
        foreground: the interface's number of each of these classes.
    """

    boxes: str
    scores: str
    count: int
    foreground: list[int]


@dataclass(frozen=True)
class Kept:
    """What stays.

    Attributes:
        scores: [N, L], `LOWEST` where suppressed.
        places: [N, L], of these in the row of all scores, class by class; None: they are that row.
        missed: int64 [N], scores at and above the threshold that were not looked at; None: all were.
    """

    scores: str
    places: str | None = None
    missed: str | None = None


def draw_suppression(
    d: Drawing, found: Candidates, post: Detection, floor: np.float32, suppression: Suppression
) -> Kept:
    """Draws the suppression of ``found`` at and above the score ``floor``."""
    if not suppression.fixed:
        return Kept(_by_operator(d, found, post, floor))
    flat = d.add("Reshape", found.scores, d.whole(0, -1))
    wanted = max(suppression.candidates, post.max_boxes)
    looked = min(found.count * len(found.foreground), wanted, MAX_CANDIDATES)
    scores, places = d.several("TopK", [flat, d.whole(looked)], 2, axis=-1)
    valid = d.add("Cast", d.add("GreaterOrEqual", scores, d.constant(floor)), to=TensorProto.FLOAT)
    overlaps = _overlaps(d, *locate(d, found, places), looked, post.iou_threshold)
    keep = _fixed_point(d, overlaps, valid, looked)
    kept = d.add("Where", d.add("Less", keep, d.constant(0.5)), d.constant(LOWEST), scores)
    every, seen = _strong(d, flat, post), _strong(d, scores, post)
    return Kept(kept, places, d.add("Cast", d.add("Sub", every, seen), to=TensorProto.INT64))


def locate(d: Drawing, found: Candidates, places: str) -> tuple[str, str]:
    """Boxes [N, L, 4] and classes [N, L] at places [N, L] in the row of all scores."""
    count = d.constant(found.count, np.int64)
    number = d.add("Div", places, count)
    box = d.add("Sub", places, d.add("Mul", number, count))
    boxes = d.add("GatherND", found.boxes, d.add("Unsqueeze", box, d.whole(-1)), batch_dims=1)
    return boxes, d.add("Gather", d.whole(*found.foreground), number, axis=0)


def _by_operator(d: Drawing, found: Candidates, post: Detection, floor: np.float32) -> str:
    """ONNX's operator, which keeps what is *above* its threshold; its choice written into a map of all scores."""
    just_below = np.nextafter(floor, np.float32(-np.inf))
    chosen = d.add(
        "NonMaxSuppression",
        found.boxes,
        found.scores,
        d.whole(min(post.max_boxes, found.count)),
        d.constant([post.iou_threshold]),
        d.constant([just_below]),
    )  # [S, 3]: image, class, box
    shape = d.add("Shape", found.scores)
    nothing = d.add("ConstantOfShape", shape, value=helper.make_tensor("", TensorProto.FLOAT, [1], [LOWEST]))
    kept = d.add("ScatterND", nothing, chosen, d.add("GatherND", found.scores, chosen))
    return d.add("Reshape", kept, d.whole(0, -1))


def _overlaps(d: Drawing, boxes: str, classes: str, looked: int, threshold: float) -> str:
    """[N, L, L], 1.0 where the better candidate (column) rules out the worse (row) if it is kept itself."""
    rows, columns = d.add("Unsqueeze", boxes, d.whole(2)), d.add("Unsqueeze", boxes, d.whole(1))
    low = d.add("Max", d.cut(rows, -1, 0, 2), d.cut(columns, -1, 0, 2))
    high = d.add("Min", d.cut(rows, -1, 2, 4), d.cut(columns, -1, 2, 4))
    shared = _area(d, d.add("Max", d.add("Sub", high, low), d.constant(0.0)))
    areas = [_area(d, d.add("Sub", d.cut(side, -1, 2, 4), d.cut(side, -1, 0, 2))) for side in (rows, columns)]
    union = d.add("Sub", d.add("Add", *areas), shared)
    real = d.add("Greater", union, d.constant(0.0))
    iou = d.add("Div", shared, d.add("Where", real, union, d.constant(1.0)))
    over = d.add("And", real, d.add("Greater", iou, d.constant(threshold)))
    over = d.add("And", over, d.add("Equal", *(d.add("Unsqueeze", classes, d.whole(axis)) for axis in (2, 1))))
    rank = np.arange(looked)
    better = d.add("Less", d.constant(rank[None, :], np.int64), d.constant(rank[:, None], np.int64))
    over = d.add("And", over, better)
    return d.add("Cast", over, to=TensorProto.FLOAT)


def _area(d: Drawing, sides: str) -> str:
    """Width times height of [..., 2]."""
    width, height = (d.add("Gather", sides, d.constant(axis, np.int64), axis=-1) for axis in (0, 1))
    return d.add("Mul", width, height)


def _fixed_point(d: Drawing, overlaps: str, valid: str, looked: int) -> str:
    """[N, L]: 1.0 for whoever is valid and overlapped by no better one that is kept.

    A sum of products, and no matrix product: TensorRT for RTX has none in fp32 on SM 7.5.
    """
    half = d.constant(0.5)
    turn, going, keep = (f"{_LOOP}{name}" for name in ("turn", "going", "keep"))
    step = Drawing(_LOOP)
    ruling = step.add("Mul", step.add("Unsqueeze", keep, d.whole(1)), overlaps)
    ruled_out = step.add("ReduceSum", ruling, d.whole(-1), keepdims=0)
    free = step.add("Cast", step.add("Less", ruled_out, half), to=TensorProto.FLOAT)
    after = step.add("Mul", free, valid)
    change = step.add("ReduceMax", step.add("Abs", step.add("Sub", after, keep)), keepdims=0)
    go_on = step.add("Greater", change, half)
    info, shape = helper.make_tensor_value_info, [None, looked]
    inputs = [
        info(turn, TensorProto.INT64, []),
        info(going, TensorProto.BOOL, []),
        info(keep, TensorProto.FLOAT, shape),
    ]
    outputs = [info(go_on, TensorProto.BOOL, []), info(after, TensorProto.FLOAT, shape)]
    body = helper.make_graph(step.nodes, "suppress", inputs, outputs)
    most, yes = d.constant(looked, np.int64), d.constant(1, np.bool_)
    return d.add("Loop", most, yes, valid, body=body)


def _strong(d: Drawing, scores: str, post: Detection) -> str:
    """How many of each row are at or above the threshold, as a float: exact below 2**24."""
    strong = d.add("GreaterOrEqual", scores, d.constant(post.min_score))
    return d.add("ReduceSum", d.add("Cast", strong, to=TensorProto.FLOAT), d.whole(1), keepdims=0)
