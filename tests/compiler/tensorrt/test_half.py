"""fp16 as the graph itself says it: types, islands with their reasons, and normalizations put together again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import typed_nets as nets
from nets import Net
from onnx import TensorProto, helper, numpy_helper

from compiler.graph import layernorm
from compiler.graph.onnxfile import Probe
from compiler.graph.view import Graph
from compiler.quantization import calibrate
from compiler.tensorrt import half, islands
from skerry.execution.parity import Noise

SHAPE = [1, 3, 64, 64]


def said(_text):
    """Progress that nobody reads."""


def ranges_of(model):
    return calibrate.ranges(model, nets.frames(4), calibrate.DEFAULT, 1, said)


def run(model, frame=None):
    """The first output, every node as it stands, fp16 rounded where it is stored."""
    probe = Probe(model, [model.graph.output[0].name], threads=1, literal=True)
    ((_, value),) = probe(nets.frames(1)[0] if frame is None else frame)
    return value


def error_db(model, wanted):
    noise = Noise()
    noise.add(wanted, run(model))
    return noise.db()


def one(kind, *constants, **attributes):
    """A net of one operator."""
    net = Net(*SHAPE)
    made = net.node(kind, "image", *[net.constant(c) for c in constants], name="y", **attributes)
    return net.model(made)


@pytest.mark.parametrize("name", nets.NETS)
def test_a_net_in_half_precision_says_the_same(name):
    model = nets.NETS[name]()

    made, _ = half.to_half(model, ranges_of(model))

    onnx.checker.check_model(made, full_check=True)
    assert error_db(made, run(model)) > 55


@pytest.mark.parametrize("name", nets.NETS)
def test_inputs_and_outputs_stay_fp32_and_weights_do_not(name):
    model = nets.NETS[name]()
    made, islands = half.to_half(model, ranges_of(model))

    borders = [[*m.graph.input, *m.graph.output] for m in (model, made)]
    for before, after in zip(*borders, strict=True):
        assert (before.name, before.type.tensor_type.elem_type) == (after.name, after.type.tensor_type.elem_type)
    apart = {island.node for island in islands}
    types = Graph(made).types
    for node in made.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm", "ConvTranspose") and node.name not in apart:
            assert {types[value] for value in node.input if value} == {TensorProto.FLOAT16}, node.name
    assert sum(t.ByteSize() for t in made.graph.initializer) < 0.6 * sum(t.ByteSize() for t in model.graph.initializer)


def test_no_two_casts_make_the_same_value():
    model = nets.detector()
    made, _ = half.to_half(model, ranges_of(model))

    casts = [(node.input[0], node.attribute[0].i) for node in made.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts)) == 3  # one in, two out


def test_a_value_that_would_overflow_stays_fp32_and_the_reason_names_it():
    net = Net(*SHAPE)
    loud = net.node("Mul", "image", net.constant(np.array(60000.0, np.float32)), name="loud")
    model = net.model(net.node("Mul", loud, net.constant(np.array(1e-4, np.float32)), name="y"))
    found = ranges_of(model)

    made, islands = half.to_half(model, found)

    assert [island.node for island in islands] == ["loud", "y"]
    assert "loud reaches" in islands[0].why
    assert "65504" in islands[0].why
    assert error_db(made, run(model)) > 60
    assert not np.isfinite(run(half.convert(model, []))).all()  # without the island it does overflow


def test_the_next_frame_may_be_brighter():
    model = one("Relu")

    assert not islands.analyse(model, {"image": (0.0, 16000.0), "y": (0.0, 16000.0)})
    assert islands.analyse(model, {"image": (0.0, 17000.0), "y": (0.0, 17000.0)})  # times four is past the end


def test_a_range_that_is_no_number_is_no_reason_for_trust():
    assert islands.analyse(one("Relu"), {"image": (float("nan"), float("nan")), "y": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("kind", "constants", "attributes", "reach", "words"),
    [
        ("Pow", [np.array(2.0, np.float32)], {}, 100.0, "a power of up to 100 to the 2"),
        ("ReduceSum", [np.array([2, 3])], {}, 10.0, "a sum of 4096 values of up to 10"),
        ("GlobalAveragePool", [], {}, 10.0, "a sum of 4096 values"),
        ("ReduceL2", [np.array([2, 3])], {}, 2.0, "to the 2"),
        ("Exp", [], {}, 10.0, "the exponential of 10"),
        ("Softmax", [], {"axis": -1}, 1.0, "it sums exponentials"),
    ],
)
def test_what_an_operator_computes_on_the_way_counts(kind, constants, attributes, reach, words):
    model = one(kind, *constants, **attributes)

    (island,) = islands.analyse(model, {"image": (-reach, reach), "y": (-1.0, 1.0)})

    assert (island.node, island.kind) == ("y", kind)
    assert words in island.why


@pytest.mark.parametrize(
    ("kind", "constants", "reach"),
    [("Pow", [np.array(2.0, np.float32)], 10.0), ("ReduceMean", [np.array([3])], 10.0), ("Exp", [], 2.0)],
)
def test_what_stays_well_inside_is_no_island(kind, constants, reach):
    assert not islands.analyse(one(kind, *constants), {"image": (-reach, reach), "y": (-1.0, 1.0)})


def test_a_sum_over_values_of_unknown_range_stays_fp32():
    (island,) = islands.analyse(one("ReduceMean", np.array([2])), {})

    assert "not known" in island.why


@pytest.mark.parametrize(
    ("constant", "words"),
    [(1e6, "reaches 1e+06"), (-3.4e38, "reaches 3.4e+38"), (1e-12, "rounds to zero")],
)
def test_a_constant_that_half_precision_cannot_hold_stays_fp32(constant, words):
    model = one("Add", np.array(constant, np.float32))

    (island,) = islands.analyse(model, {"image": (-1.0, 1.0), "y": (-1.0, 1.0)})

    assert words in island.why


def test_what_is_asked_for_stays_fp32():
    model = nets.resnet()
    conv = next(node for node in model.graph.node if node.op_type == "Conv").name

    made, islands = half.to_half(model, ranges_of(model), keep_float=[conv])

    assert [(island.node, island.why) for island in islands] == [(conv, "asked for")]
    assert Graph(made).types[conv] == TensorProto.FLOAT


def test_subgraphs_keep_their_types_and_what_they_read():
    """An If whose branches read a value of the outer graph, which an fp16 layer makes."""

    def branch(name, kind):
        node = helper.make_node(kind, ["doubled"], [name])
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)
        return helper.make_graph([node], name, [], [out])

    net = Net(*SHAPE)
    net.node("Mul", "image", net.constant(np.array(2.0, np.float32)), name="doubled")
    net.constant(np.array(True), "yes")
    net.node("If", "yes", name="y", then_branch=branch("then", "Relu"), else_branch=branch("else", "Neg"))
    model = net.model("y")

    made, islands = half.to_half(model, ranges_of(model))

    onnx.checker.check_model(made, full_check=True)
    assert [island.node for island in islands] == ["y"]
    assert Graph(made).types["doubled_fp16"] == TensorProto.FLOAT16
    np.testing.assert_allclose(run(made), np.maximum(2 * nets.frames(1)[0], 0), rtol=2e-3)


def test_a_resize_keeps_its_scales_and_a_cast_its_type():
    net = Net(*SHAPE)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    up = net.node("Resize", "image", "", scales, mode="nearest")
    whole = net.node("Cast", net.node("Floor", up), to=TensorProto.INT64)
    back = net.node("Cast", whole, to=TensorProto.FLOAT)
    model = net.model(net.node("Mul", back, net.constant(np.array(0.5, np.float32)), name="y"))

    made, _ = half.to_half(model, ranges_of(model))

    onnx.checker.check_model(made, full_check=True)
    assert Graph(made).types["scales"] == TensorProto.FLOAT
    frame = np.rint(nets.frames(1)[0] * 4) / 4
    np.testing.assert_array_equal(run(made, frame), run(model, frame))


def test_a_scale_that_half_precision_would_round_to_zero_keeps_its_pair_fp32():
    net = Net(*SHAPE)
    scale, zero = net.constant(np.array(1e-9, np.float32)), net.constant(np.array(0, np.int8))
    stored = net.node("QuantizeLinear", "image", scale, zero)
    model = net.model(net.node("DequantizeLinear", stored, scale, zero, name="y"))

    made = half.convert(model, [])

    assert {t.data_type for t in made.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}


def test_the_same_graph_gives_the_same_bytes():
    model = nets.transformer()
    found = ranges_of(model)

    one_, two = (half.to_half(model, found)[0].SerializeToString(deterministic=True) for _ in range(2))

    assert one_ == two


# Layer normalization


@pytest.fixture(scope="module")
def in_parts():
    """A transformer whose residual stream is loud: the squares of a normalization leave fp16, nothing else does."""
    return nets.transformer(in_parts=True, loud=300.0)


def test_a_normalization_in_parts_becomes_one_node(in_parts):
    fused, names = layernorm.fuse(in_parts)

    onnx.checker.check_model(fused, full_check=True)
    assert len(names) == 5
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("LayerNormalization") == 5
    assert not {"Pow", "Sqrt", "Sub"} & set(kinds)
    assert error_db(fused, run(in_parts)) > 100


def test_its_squares_overflow_in_half_precision_unless_it_is_one_node_or_an_island(in_parts):
    wanted, found = run(in_parts), ranges_of(in_parts)

    assert error_db(half.convert(in_parts, []), wanted) < 10  # what is divided by infinity is nothing

    islands = half.to_half(in_parts, found)
    assert {island.kind for island in islands[1]} >= {"Pow", "ReduceMean"}
    assert error_db(islands[0], wanted) > 45

    fused, _ = layernorm.fuse(in_parts)
    made, left = half.to_half(fused, found)
    assert {island.kind for island in left} == {"Softmax"}
    assert error_db(made, wanted) > 45


def test_other_ways_to_write_a_normalization_are_known_too():
    net = Net(1, 8, 16)
    axes = net.constant(np.array([-1]))
    centred = net.node("Sub", "image", net.node("ReduceMean", "image", axes))
    variance = net.node("ReduceMean", net.node("Mul", centred, centred), axes)
    root = net.node("Sqrt", net.node("Add", variance, net.constant(np.array(1e-6, np.float32))))
    model = net.model(net.node("Mul", net.node("Reciprocal", root), centred, name="y"))
    frame = np.random.default_rng(1).normal(3.0, 2.0, (1, 8, 16)).astype(np.float32)

    fused, names = layernorm.fuse(model)

    assert names == ["y"]
    assert [node.op_type for node in fused.graph.node] == ["LayerNormalization"]
    np.testing.assert_allclose(run(fused, frame), run(model, frame), atol=1e-5)


def other_axis(net):
    axes = net.constant(np.array([1]))
    return axes, axes


def two_axes(net):
    return net.constant(np.array([-1])), net.constant(np.array([-2]))


@pytest.mark.parametrize("axes", [other_axis, two_axes])
def test_what_only_looks_like_a_normalization_is_left_alone(axes):
    net = Net(1, 8, 16)
    first, second = axes(net)
    centred = net.node("Sub", "image", net.node("ReduceMean", "image", first))
    variance = net.node("ReduceMean", net.node("Mul", centred, centred), second)
    root = net.node("Sqrt", net.node("Add", variance, net.constant(np.array(1e-6, np.float32))))
    model = net.model(net.node("Div", centred, root, name="y"))

    fused, names = layernorm.fuse(model)

    assert names == []
    assert list(fused.graph.node) == list(model.graph.node)


def test_an_opset_without_the_operator_is_left_alone():
    model = nets.transformer(in_parts=True)
    model.opset_import[0].version = 16

    assert layernorm.fuse(model)[1] == []


def test_weights_in_constant_nodes_are_read_like_initializers():
    model = nets.resnet()
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    tensors = list(moved.graph.initializer)
    del moved.graph.initializer[:], moved.graph.node[:]
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
    moved.graph.node.extend([*constants, *model.graph.node])

    made, _ = half.to_half(moved, ranges_of(model))

    assert error_db(made, run(model)) > 55
    assert {numpy_helper.to_array(t).dtype for t in made.graph.initializer} == {np.dtype(np.float16)}
