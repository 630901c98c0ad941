"""Explicit Q/DQ: each rule, and that the graph still says the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import typed_nets as nets
from nets import Net
from onnx import TensorProto

from compiler.graph.onnxfile import Probe, weights_of
from compiler.graph.view import Graph, attribute
from compiler.quantization import calibrate
from compiler.tensorrt import bias, layout, pairs, placement
from skerry.errors import CompileError
from skerry.execution.parity import Noise

PAIRS = ("QuantizeLinear", "DequantizeLinear")


def said(_text):
    """Progress that nobody reads."""


def ranges_of(model):
    return calibrate.ranges(model, nets.frames(8), calibrate.DEFAULT, 1, said)


def laid_out(model, **options):
    return layout.lay_out(model, ranges_of(model), **options)


def error_db(model, original, frames=4):
    """The worst output, every node as it stands."""
    names = [output.name for output in original.graph.output]
    runs = [Probe(m, names, threads=1, literal=True) for m in (original, model)]
    noise = {name: Noise() for name in names}
    for frame in nets.frames(frames):
        for (name, wanted), (_, found) in zip(*(run(frame) for run in runs), strict=True):
            noise[name].add(wanted, found)
    return min(pooled.db() for pooled in noise.values())


@pytest.mark.parametrize("half_", [True, False], ids=["fp16", "fp32"])
@pytest.mark.parametrize(("name", "limit"), [("detector", 18), ("mobilenet", 25), ("transformer", 30), ("resnet", 35)])
def test_a_net_in_int8_says_much_the_same(name, limit, half_):
    model = nets.NETS[name]()

    made = laid_out(model, half=half_)

    onnx.checker.check_model(made, full_check=True)
    assert error_db(made, model) > limit
    assert set(layout.requested(made).values()) == {"int8", "fp16" if half_ else "fp32"}


@pytest.mark.parametrize("name", nets.NETS)
def test_every_grid_is_symmetric_int8_and_a_constant(name):
    model = laid_out(nets.NETS[name]())
    graph = Graph(model)

    pairs = [node for node in graph.nodes if node.op_type in PAIRS]
    assert pairs
    for node in pairs:
        scale, zero = graph.constant(node.input[1]), graph.constant(node.input[2])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        assert scale.dtype == np.float16
        assert scale.shape == zero.shape


@pytest.mark.parametrize("name", nets.NETS)
def test_pairs_stand_on_inputs_of_weighted_layers_and_skips_alone(name):
    model = nets.NETS[name]()
    skips = placement.decide(model, ranges_of(model)).skips
    graph = Graph(laid_out(model))

    for node in graph.nodes:
        if node.op_type == "DequantizeLinear":
            readers = {reader.op_type for reader in graph.consumers[node.output[0]]}
            assert readers <= {"Conv", "ConvTranspose", "Gemm", "MatMul"} | ({"Add"} if skips else set()), node.name
        if node.op_type == "QuantizeLinear":
            (reader,) = graph.consumers[node.output[0]]
            assert reader.op_type == "DequantizeLinear"


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "segmenter"])
def test_nothing_stands_between_a_convolution_and_its_activation(name):
    graph = Graph(laid_out(nets.NETS[name]()))

    for node in graph.nodes:
        if node.op_type in ("Relu", "Clip"):
            assert graph.producer[node.input[0]].op_type in ("Conv", "ConvTranspose", "Add")


def test_weights_have_a_scale_per_output_channel_on_the_operators_own_axis():
    net = Net(1, 32, 8, 8)
    x = net.node("Conv", "image", net.constant(np.ones((40, 32, 1, 1), np.float32), "conv"), kernel_shape=[1, 1])
    x = net.node("ConvTranspose", x, net.constant(np.ones((40, 24, 2, 2), np.float32), "up"), strides=[2, 2])
    x = net.node("Transpose", net.node("Reshape", x, net.constant(np.array([24, 256]))), perm=[1, 0])
    x = net.node("MatMul", x, net.constant(np.ones((24, 48), np.float32), "matrix"))
    x = net.node("Gemm", x, net.constant(np.ones((56, 48), np.float32), "turned"), transB=1)
    model = net.model(net.node("Gemm", x, net.constant(np.ones((56, 64), np.float32), "straight"), name="y"))
    ranges = dict.fromkeys(["image", *(n.output[0] for n in model.graph.node)], (-1.0, 1.0))

    made = layout.lay_out(model, ranges)

    found = {
        node.input[0].rpartition("_q")[0]: (attribute(node, "axis", 1), len(weights_of(made)[node.input[1]]))
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights_of(made)
    }
    assert found == {"conv": (0, 40), "up": (1, 24), "matrix": (1, 48), "turned": (0, 56), "straight": (1, 64)}


def test_a_channels_weights_use_its_whole_grid_and_none_is_clipped():
    random = np.random.default_rng(5)
    weights = random.normal(size=(32, 16, 3, 3)).astype(np.float32) * np.geomspace(1e-3, 10, 32)[:, None, None, None]
    net = Net(1, 16, 8, 8)
    model = net.model(net.node("Conv", "image", net.constant(weights.astype(np.float32), "w"), name="y"))

    tensors = weights_of(layout.lay_out(model, {"image": (-1.0, 1.0), "y": (-9.0, 9.0)}))
    stored = next(t for name, t in tensors.items() if name == "w_q0")
    scale = next(t for name, t in tensors.items() if name.startswith("w_scale0")).astype(np.float32)

    assert (np.abs(stored).reshape(32, -1).max(axis=1) >= 125).all()
    step = scale.reshape(-1, 1, 1, 1)
    assert (np.abs(stored * step - weights) <= step * 0.501).all()


def test_a_dead_channel_still_has_a_grid():
    weights = np.zeros((16, 16, 1, 1), np.float32)
    net = Net(1, 16, 8, 8)
    model = net.model(net.node("Conv", "image", net.constant(weights), kernel_shape=[1, 1], name="y"))

    made = layout.lay_out(model, {"image": (0.0, 0.0), "y": (0.0, 0.0)})

    assert all((t > 0).all() for name, t in weights_of(made).items() if "scale" in name)
    assert np.isfinite(error_db_of_zero(made)).all()


def error_db_of_zero(model):
    ((_, value),) = Probe(model, ["y"], threads=1, literal=True)(np.ones((1, 16, 8, 8), np.float32))
    return value


def test_of_a_residual_sum_only_the_skip_is_quantized():
    model = nets.resnet()
    decided = placement.decide(model, ranges_of(model))
    graph = Graph(laid_out(model))

    assert len(decided.skips) == 2
    for name, skip in decided.skips.items():
        add = next(node for node in graph.nodes if node.name == name)
        makers = {graph.producer[value].op_type for value in add.input}
        assert makers == {"DequantizeLinear", "Conv"}
        assert f"{skip}_dq" in add.input


def test_of_two_branches_the_longer_one_fuses_and_the_projection_is_the_skip():
    model = nets.resnet()
    graph = Graph(model)
    (projection,) = (
        n.output[0] for n in graph.nodes if n.op_type == "Conv" and graph.constant(n.input[1]).shape == (64, 32, 1, 1)
    )

    assert projection in placement.decide(model, ranges_of(model)).skips.values()


def test_a_transformers_residual_stream_is_not_quantized():
    model = nets.transformer()
    graph = Graph(laid_out(model))

    assert not placement.decide(model, ranges_of(model)).skips
    for node in graph.nodes:
        if node.op_type == "Add":
            assert all(graph.producer[v].op_type != "DequantizeLinear" for v in node.input if v in graph.producer), (
                node.name
            )


def test_a_sum_that_somebody_else_reads_before_it_is_no_residual_sum():
    net = Net(1, 16, 8, 8)
    first = net.conv("image", 16, 16)
    second = net.conv(first, 16, 16)
    net.node("Identity", second, name="aside")
    model = net.model(net.node("Add", second, first, name="y"), "aside")

    assert placement.decide(model, ranges_of_16(model)).skips == {}


def ranges_of_16(model):
    return calibrate.ranges(model, nets.frames(2, (1, 16, 8, 8)), calibrate.DEFAULT, 1, said)


def test_what_is_concatenated_is_on_one_grid():
    model = nets.detector()
    decided = placement.decide(model, ranges_of(model))
    graph = Graph(model)

    concats = [node for node in graph.nodes if node.op_type == "Concat"]
    assert len(concats) == 3
    shared = 0
    for concat in concats:
        grid = decided.reach[concat.output[0]]
        for value in concat.input:
            moved = value if graph.producer[value].op_type != "MaxPool" else graph.producer[value].input[0]
            for one in {value, moved} & decided.reach.keys():
                assert decided.reach[one] == grid
                shared += 1
    assert shared >= 3


def test_a_grid_reaches_as_far_as_the_widest_of_those_that_share_it():
    net = Net(1, 16, 8, 8)
    narrow = net.node("Relu", "image", name="narrow")
    wide = net.node("Mul", "image", net.constant(np.array(50.0, np.float32)), name="wide")
    both = net.node("Concat", narrow, wide, axis=1)
    alone = net.conv(narrow, 16, 16)
    model = net.model(net.node("Identity", alone, name="a"), net.conv(both, 32, 16))
    ranges = dict.fromkeys([n.output[0] for n in model.graph.node], (-1.0, 1.0)) | {"wide": (-50.0, 40.0)}

    decided = placement.decide(model, ranges)

    assert decided.reach == {"narrow": 50.0, both: 50.0}


def test_a_concat_that_nobody_reads_quantized_binds_nobody():
    net = Net(1, 16, 8, 8)
    narrow = net.node("Relu", "image", name="narrow")
    wide = net.node("Mul", "image", net.constant(np.array(50.0, np.float32)), name="wide")
    net.node("Concat", narrow, wide, axis=1, name="both")
    model = net.model(net.conv(narrow, 16, 16), "both")
    ranges = dict.fromkeys([n.output[0] for n in model.graph.node], (-1.0, 1.0)) | {"wide": (-50.0, 40.0)}

    assert placement.decide(model, ranges).reach == {"narrow": 1.0}


@pytest.mark.parametrize(
    ("into", "out", "options", "words"),
    [
        (16, 16, {}, None),
        (3, 32, {}, "3 to 32 channels are fewer than 16"),
        (32, 8, {}, "fewer than 16"),
        (20, 32, {}, "not multiples of 8"),
        (32, 32, {"group": 32}, "a depthwise layer"),
        (64, 64, {"group": 8}, "8 to 8 channels are fewer than 16"),
        (64, 64, {"group": 2}, None),
    ],
)
def test_a_convolution_too_thin_for_int8_stays_as_it_is(into, out, options, words):
    net = Net(1, into, 8, 8)
    name = net.conv("image", into, out, 1, **options)
    model = net.model(name)

    left = placement.decide(model, {"image": (-1.0, 1.0), name: (-1.0, 1.0)}).left

    assert (words is None) == (name not in left)
    assert words is None or words in left[name]


@pytest.mark.parametrize(
    ("rows", "into", "out", "words"),
    [
        (64, 32, 32, None),
        (64, 32, 10, "too thin"),
        (64, 8, 32, "too thin"),
        (1, 512, 512, "bound by memory"),
    ],
)
def test_a_matrix_too_thin_for_int8_stays_as_it_is(rows, into, out, words):
    net = Net(1, rows, into)
    name = net.node("MatMul", "image", net.weights(into, out, fan=into, gain=2.0), name="y")
    model = net.model(name)

    left = placement.decide(model, {"image": (-1.0, 1.0), "y": (-1.0, 1.0)}).left

    assert (words is None) == (not left)
    assert words is None or words in left["y"]


def test_a_convolution_over_one_pixel_is_one_row_too():
    """Squeeze and excite: what stands behind a global mean."""
    net = Net(1, 32, 8, 8)
    squeezed = net.conv(net.node("GlobalAveragePool", "image"), 32, 32)
    model = net.model(net.node("Mul", "image", net.node("Sigmoid", squeezed), name="y"))

    left = layout_of_32(model).left

    assert left == {squeezed: "one row times a matrix is bound by memory"}


def layout_of_32(model):
    return placement.decide(model, calibrate.ranges(model, nets.frames(2, (1, 32, 8, 8)), calibrate.DEFAULT, 1, said))


def test_what_has_no_constant_weights_is_no_layer():
    left = placement.decide(nets.transformer(), ranges_of(nets.transformer())).left

    assert list(left.values()).count("its weights are computed") == 4  # two blocks, each query by key and by value


def test_kept_nodes_stay_as_they_are():
    model = nets.resnet()
    layers = placement.decide(model, ranges_of(model)).layers

    made = laid_out(model, keep_float=layers[:2])

    asked = layout.requested(made)
    assert [asked[name] for name in layers] == ["fp16", "fp16", "int8", "int8", "int8"]


def test_biases_are_not_quantized():
    model = laid_out(nets.resnet())
    graph = Graph(model)

    for node in graph.nodes:
        if node.op_type == "Conv":
            assert graph.types[node.input[2]] == TensorProto.FLOAT16


def test_a_value_without_a_range_is_an_error_that_names_it():
    model = nets.resnet()
    ranges = {name: found for name, found in ranges_of(model).items() if not name.startswith("relu")}

    with pytest.raises(CompileError, match=r"relu_\d+ \(Relu\) has no range"):
        layout.lay_out(model, ranges)


@pytest.mark.parametrize(("opset", "half_", "least"), [(18, True, 19), (12, False, 13)])
def test_an_opset_too_old_for_such_pairs_is_refused(opset, half_, least):
    model = nets.resnet()
    model.opset_import[0].version = opset

    with pytest.raises(CompileError, match=f"of opset {opset}, its Q/DQ pairs need {least}; raise it to 20"):
        layout.lay_out(model, ranges_of(nets.resnet()), half=half_)


def test_operator_sets_that_nobody_uses_are_dropped():
    model = nets.resnet()
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))

    assert [opset.domain for opset in laid_out(model).opset_import] == [""]


def test_weights_that_two_layers_share_are_stored_once():
    net = Net(1, 16, 8, 8)
    weights = net.weights(16, 16, 1, 1, fan=16, gain=2.0)
    first = net.node("Conv", "image", weights, kernel_shape=[1, 1])
    model = net.model(net.node("Conv", first, weights, kernel_shape=[1, 1], name="y"))

    made = layout.lay_out(model, dict.fromkeys(["image", first, "y"], (-1.0, 1.0)))

    assert sum(t.data_type == TensorProto.INT8 and len(t.dims) == 4 for t in made.graph.initializer) == 1


def test_the_same_graph_gives_the_same_bytes():
    model = nets.detector()
    found = ranges_of(model)

    one, two = (layout.lay_out(model, found).SerializeToString(deterministic=True) for _ in range(2))

    assert one == two


def test_bias_correction_takes_the_mean_error_out_of_every_channel():
    model = nets.mobilenet()
    ranges, frames = ranges_of(model), nets.frames(8)
    made = pairs.write(model, placement.decide(model, ranges), half=True)
    layers = [n.output[0] for n in made.graph.node if n.op_type == "Conv" and n.input[1].endswith("_dq0")]

    def off():
        sums = dict.fromkeys(layers, 0.0)
        found, wanted = (Probe(m, layers, threads=1) for m in (made, model))
        for frame in frames:
            for (name, value), (_, right) in zip(found(frame), wanted(frame), strict=True):
                sums[name] = sums[name] + (value - right).mean(axis=(0, 2, 3)) / len(frames)
        return {name: float(np.abs(error).mean()) for name, error in sums.items()}

    before, others = off(), weights_of(made)
    bias.correct(made, model, frames, 1, said)

    assert sum(off().values()) < sum(before.values()) / 10
    changed = {name for name, value in weights_of(made).items() if not np.array_equal(value, others[name])}
    assert len(changed) == len(layers)
