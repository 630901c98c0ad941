"""Bytes and graphs that chance has bent: always a verified graph or one sentence, never anything else, never for ever."""

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
OPERATORS = ["Relu", "Conv", "MatMul", "Add", "Reshape", "Shape", "ConstantOfShape", "Resize", "Pad", "Tile", "NonZero", "TopK", "If", "Cast", "Dropout", "Expand", "Range", "Slice"]  # fmt: skip


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
    graph, kind = model.graph, draw(st.integers(0, 13))
    nodes, tensors = list(graph.node), list(graph.initializer)
    names = sorted({name for each in nodes for name in [*each.input, *each.output]} | {t.name for t in tensors})
    each = draw(st.sampled_from(nodes)) if nodes else None
    tensor = draw(st.sampled_from(tensors)) if tensors else None
    if kind == 0 and each:
        graph.node.remove(each)
    elif kind == 1 and each and each.input:
        each.input[draw(st.integers(0, len(each.input) - 1))] = draw(st.sampled_from([*names, "", "nowhere"]))
    elif kind == 2 and each and each.output:
        each.output[0] = draw(st.sampled_from([*names, ""]))
    elif kind == 3 and each:
        each.op_type = draw(st.sampled_from(OPERATORS))
    elif kind == 4 and each and each.attribute:
        attribute = draw(st.sampled_from(list(each.attribute)))
        attribute.i = draw(st.integers(-(2**40), 2**40))
        for index in range(len(attribute.ints)):
            attribute.ints[index] = draw(st.integers(-3, 2**33))
    elif kind == 5:
        model.opset_import[0].version = draw(st.integers(-1, 40))
    elif kind == 6 and tensor:
        tensor.dims[:] = draw(st.lists(st.integers(-2, 2**34), max_size=5))
    elif kind == 7 and tensor:
        tensor.data_type = draw(st.integers(0, 25))
    elif kind == 8 and tensor:
        tensor.raw_data = draw(st.binary(max_size=64)) * draw(st.integers(0, 99))
    elif kind == 9 and tensor:
        graph.initializer.remove(tensor)
    elif kind == 10:
        graph.output[0].name = draw(st.sampled_from([*names, ""]))
    elif kind == 11:
        graph.input[0].type.tensor_type.elem_type = draw(st.integers(0, 25))
    elif kind == 12:
        graph.input[0].type.tensor_type.shape.dim[draw(st.integers(0, 3))].dim_value = draw(st.integers(-5, 2**40))
    elif kind == 13 and each:
        graph.node.append(each)


@fuzzed
@given(raw=bent_graphs())
def test_graphs_that_chance_bent_are_adopted_or_refused(judged, raw):
    verdict = judged(raw)

    assert verdict.startswith(("adopted", "refused: net.onnx")), verdict
