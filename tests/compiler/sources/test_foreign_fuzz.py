"""Bytes and graphs that chance has bent: always a verified graph or one sentence, never anything else."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import onnx
import pytest
from graphs import CONV, HEAD, SHAPE, array, branch, conv, graph, head, held, node, plain, value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import judge, limit_memory

pytestmark = pytest.mark.slow

SECONDS = 120  # for one graph of a few nodes: what takes that long hangs
OPERATORS = [
    *("Relu", "Conv", "MatMul", "Add", "Reshape", "Shape", "ConstantOfShape", "Resize", "Pad", "Tile", "NonZero"),
    *("TopK", "If", "Cast", "Dropout", "Expand", "Range", "Slice"),
]


def decided() -> onnx.ModelProto:
    then, other = (branch(op, [node(op, ["c"], ["x"])], "x") for op in ("Relu", "Neg"))
    nodes = [
        conv(),
        node("Shape", ["c"], ["s"]),
        node("Gather", ["s", "at"], ["size"]),
        node("Equal", ["size", "at"], ["yes"]),
        node("If", ["yes"], ["r"], then_branch=then, else_branch=other),
        *head("r"),
    ]
    return graph(nodes, [*CONV, *HEAD, held("at", 1, np.int64)], opset=13, image=value("image", shape=["n", 3, 8, 8]))


def resized() -> onnx.ModelProto:
    nodes = [
        node("Constant", [], ["k"], value=held("", [1, 1, 2, 2], np.float32)),
        conv(),
        node("Upsample", ["c", "k"], ["u"], mode="nearest"),
        node("Pad", ["u"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Reshape", ["p", "to"], ["q"]),
        node("MatMul", ["q", "g"], ["scores"]),
    ]
    more = [held("to", [1, -1], np.int64), held("g", array(1296, 3))]
    return graph(nodes, [*CONV, *more], opset=9, listed=True, ir=3)


VALID = [model.SerializeToString() for model in (plain(), plain(9, listed=True, ir=3), decided(), resized())]


@pytest.fixture(scope="module")
def judged():
    """Asks a process of its own; a death by the library is told apart from a wrong exception, and starts another."""
    pools = []

    def start():
        pools.append(ProcessPoolExecutor(1, get_context("spawn"), limit_memory))
        return pools[-1]

    def ask(raw: bytes) -> str:
        pool = pools[-1] if pools else start()
        try:
            return pool.submit(judge, raw, SHAPE).result(SECONDS)
        except TimeoutError:
            return "hung"
        except Exception as exc:  # noqa: BLE001 - the pool is broken: the process died
            start()
            return f"died: {exc}"

    yield ask
    for pool in pools:
        pool.shutdown(cancel_futures=True)


def test_the_graphs_that_are_bent_are_right(judged):
    assert [judged(raw) for raw in VALID] == ["adopted"] * len(VALID)


fuzzed = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@fuzzed
@given(
    which=st.integers(0, len(VALID) - 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_bytes_that_chance_bent_are_adopted_or_refused(judged, which, flips, cut):
    raw = bytearray(VALID[which])
    for place, byte in flips:
        raw[int(place * len(raw))] = byte
    if cut is not None:
        raw = raw[: int(cut * len(raw))]

    verdict = judged(bytes(raw))

    assert verdict.startswith(("adopted", "refused: net.onnx")), verdict


@st.composite
def bent_graphs(draw):
    """A valid graph with one to three things in it changed, of the kinds that exporters and editors get wrong."""
    model = onnx.ModelProto.FromString(VALID[draw(st.integers(0, len(VALID) - 1))])
    for _ in range(draw(st.integers(1, 3))):
        _bend(draw, model)
    return model.SerializeToString()


def _bend(draw, model):
    graph = model.graph
    bend = draw(st.sampled_from([_bend_node, _bend_tensor, _bend_signature]))
    bend(draw, model, sorted({name for each in graph.node for name in [*each.input, *each.output]}))


def _bend_node(draw, model, names):
    each = draw(st.sampled_from(list(model.graph.node)))
    where = draw(st.integers(0, 9))
    match draw(st.integers(0, 5)):
        case 0 if len(model.graph.node) > 1:
            model.graph.node.remove(each)
        case 1 if where < len(each.input):
            each.input[where] = draw(st.sampled_from([*names, "", "nowhere"]))
        case 2 if where < len(each.output):
            each.output[where] = draw(st.sampled_from([*names, ""]))
        case 3:
            each.op_type = draw(st.sampled_from(OPERATORS))
        case 4 if where < len(each.attribute):
            attribute = each.attribute[where]
            attribute.i = draw(st.integers(-(2**40), 2**40))
            attribute.ints[:] = [draw(st.integers(-3, 2**33)) for _ in attribute.ints]
        case _:
            model.graph.node.append(each)


def _bend_tensor(draw, model, names):
    tensor = draw(st.sampled_from(list(model.graph.initializer)))
    match draw(st.integers(0, 4)):
        case 0:
            tensor.dims[:] = draw(st.lists(st.integers(-2, 2**34), max_size=5))
        case 1:
            tensor.data_type = draw(st.integers(0, 25))
        case 2:
            tensor.raw_data = draw(st.binary(max_size=64)) * draw(st.integers(0, 99))
        case 3:
            tensor.name = draw(st.sampled_from([*names, ""]))
        case 4 if len(model.graph.initializer) > 1:
            model.graph.initializer.remove(tensor)


def _bend_signature(draw, model, names):
    entry = model.graph.input[0].type.tensor_type
    match draw(st.integers(0, 3)):
        case 0:
            model.opset_import[0].version = draw(st.integers(-1, 40))
        case 1:
            model.graph.output[0].name = draw(st.sampled_from([*names, ""]))
        case 2:
            entry.elem_type = draw(st.integers(0, 25))
        case 3:
            entry.shape.dim[draw(st.integers(0, 3))].dim_value = draw(st.integers(-5, 2**40))


@fuzzed
@given(raw=bent_graphs())
def test_graphs_that_chance_bent_are_adopted_or_refused(judged, raw):
    verdict = judged(raw)

    assert verdict.startswith(("adopted", "refused: net.onnx")), verdict
