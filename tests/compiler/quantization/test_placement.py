"""Where Q/DQ pairs stand: what runs in int8, and what a transformer, a detector and a search must keep in float."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from compiler.graph.onnxfile import Probe, weights_of
from compiler.graph.view import Graph
from compiler.quantization import calibrate, quantize
from compiler.quantization.placement import place
from compiler.quantization.units import fusion_units
from skerry.errors import CompileError, UsageError
from skerry.execution.onnxrt import session_options

NETS = [nets.residual, nets.split_and_concat, nets.transformer]
STATIC = ["u8s8", "u8s8-7bit", "s8s8"]


def frames(count: int = 4) -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=(1, 3, 16, 16)).astype(np.float32) for i in range(count)]


@pytest.fixture
def prepared(tmp_path):
    def make(model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.save(model, tmp_path / "source.onnx")
        quantize.prepare(tmp_path / "source.onnx", tmp_path / "prepared.onnx")
        return onnx.load(tmp_path / "prepared.onnx")

    return make


def laid_out(model: onnx.ModelProto, layout: str = "u8s8", keep_float: Collection[str] = ()) -> onnx.ModelProto:
    found = calibrate.ranges(model, frames(), "minmax", 1, lambda _text: None)
    quantized = quantize.laid_out(model, found, layout=layout, keep_float=keep_float)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def on_grids(model: onnx.ModelProto) -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def run(model: onnx.ModelProto, *, literal: bool = True) -> list[np.ndarray]:
    names = [value.name for value in model.graph.output]
    probe = Probe(model, names, threads=1, literal=literal)
    return [dict(probe(frame))[names[0]] for frame in frames()]


def fused(model: onnx.ModelProto, folder, options: ort.SessionOptions | None = None) -> Counter[str]:
    """The kernels that ONNX Runtime makes of it."""
    options = options or session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "fused.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


# What ONNX Runtime makes of a layout


def test_every_pair_of_a_cnn_is_taken_up_by_an_int8_kernel(prepared, tmp_path) -> None:
    kernels = fused(laid_out(prepared(nets.residual())), tmp_path)

    assert kernels["QLinearConv"] == 6
    assert kernels["QLinearAdd"] == 2
    assert kernels["QGemm"] == 1
    assert not kernels.keys() & {"Conv", "Gemm", "Relu", "DequantizeLinear"}
    assert kernels["QuantizeLinear"] == 1  # of the image


def test_every_pair_of_a_detector_is_taken_up_but_for_its_outputs(prepared, tmp_path) -> None:
    kernels = fused(laid_out(prepared(nets.split_and_concat())), tmp_path)

    assert kernels["QLinearConv"] == 7
    assert kernels["QLinearSigmoid"] == 6
    assert kernels["QLinearMul"] == 6
    assert kernels["QLinearConcat"] == 1
    assert kernels["Sigmoid"] == 1  # the scores: nothing with weights comes behind
    assert kernels["DequantizeLinear"] == 1


def test_every_linear_layer_of_a_transformer_runs_in_int8(prepared, tmp_path) -> None:
    kernels = fused(laid_out(prepared(nets.transformer(depth=2))), tmp_path)

    assert kernels["QGemm"] == 13
    assert kernels["QuantizeLinear"] == 9  # query, key and value share one
    assert kernels["DequantizeLinear"] == 0


def test_dynamic_int8_fuses_into_one_kernel_a_layer(prepared, tmp_path) -> None:
    kernels = fused(laid_out(prepared(nets.transformer(depth=2)), "dynamic"), tmp_path)

    assert kernels["DynamicQuantizeMatMul"] + kernels["MatMulIntegerToFloat"] == 13
    assert not kernels.keys() & {"MatMulInteger", "Gemm"}


def units_between_grids(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """Convolutions that read from a grid and write to one, without a residual addition."""
    units = [unit for unit in fusion_units(model) if unit.kind in ("conv", "depthwise")]
    adding = {node.name for node in model.graph.node if node.op_type == "Add"}
    return [unit.nodes for unit in units if not adding.intersection(unit.nodes)]


def test_a_layer_that_is_kept_in_float_runs_in_float(prepared, tmp_path) -> None:
    model = prepared(nets.residual())
    assert len(units_between_grids(model)) >= 3
    for kept in units_between_grids(model):
        made = laid_out(model, keep_float=kept)
        kernels = fused(made, tmp_path)

        assert (kernels["Conv"] + kernels["FusedConv"], kernels["QLinearConv"]) == (1, 5), kept
        for literal, as_it_runs in zip(run(made), run(made, literal=False), strict=True):
            np.testing.assert_allclose(as_it_runs, literal, atol=np.abs(literal).max() / 50)


def test_which_onnx_runtime_left_to_itself_does_not_keep(prepared, tmp_path) -> None:
    """The reason for an option of every session: should this fail, the option has become needless."""
    model = prepared(nets.residual())
    kept = units_between_grids(model)[1]
    kernels = fused(laid_out(model, keep_float=kept), tmp_path, ort.SessionOptions())

    assert (kernels["Conv"], kernels["FusedConv"], kernels["QLinearConv"]) == (0, 0, 6)


# Transformers


@pytest.mark.parametrize("layout", STATIC)
def test_no_grid_lies_on_a_residual_stream_a_softmax_or_a_norm(prepared, layout) -> None:
    model = prepared(nets.transformer())
    graph, grids = Graph(model), on_grids(laid_out(model, layout))

    strained = {node.input[0] for node in graph.nodes if graph.normalizes(node)}
    adds = [node for node in graph.nodes if node.op_type == "Add"]
    assert len(strained) == 7
    assert len(adds) == 5
    assert not grids & strained
    assert not grids & {value for node in adds for value in (*node.input, *node.output)}


def test_a_layernorm_in_pieces_keeps_its_input_too() -> None:
    net = nets.Net(1, 3, 8, 8)
    value = net.conv("image", 3, 8, 3, name="first")
    mean = net.node("ReduceMean", value, net.constant(np.array([1])))
    centred = net.node("Sub", value, mean)
    norm = net.node(
        "Div", centred, net.node("ReduceMean", net.node("Mul", centred, centred), net.constant(np.array([1])))
    )
    model = net.model(net.conv(norm, 8, 4, 3, name="last"))

    placement = place(Graph(model))

    assert placement.nodes == {"last"}
    assert set(placement.grids) == {norm, "last"}


# What stays in float


@pytest.mark.parametrize("layout", [*STATIC, "dynamic"])
@pytest.mark.parametrize("build", NETS)
def test_any_units_may_stay_in_float(prepared, build, layout) -> None:
    model = prepared(build())
    units = fusion_units(model)
    found = calibrate.ranges(model, frames(), "minmax", 1, lambda _text: None)
    for some in itertools.islice(itertools.combinations(units, 2), 12):
        keep = {name for unit in some for name in unit.nodes}
        quantized = quantize.laid_out(model, found, layout=layout, keep_float=keep)
        onnx.checker.check_model(quantized, full_check=True)
        assert_float(model, quantized, keep)


def assert_float(model: onnx.ModelProto, quantized: onnx.ModelProto, keep: Collection[str]) -> None:
    """The nodes named are as they were; what they read comes straight from its maker, unless that one writes int8."""
    before, after = ({n.name: n for n in m.graph.node} for m in (model, quantized))
    makers = {value: node for node in quantized.graph.node for value in node.output}
    for name in keep:
        assert [v.removesuffix("_DequantizeLinear_Output") for v in after[name].input] == list(before[name].input)
        assert [v.removesuffix("_QuantizeLinear_Input") for v in after[name].output] == list(before[name].output)
        for value in after[name].input:
            if value.endswith("_DequantizeLinear_Output"):
                source = makers[value.removesuffix("_DequantizeLinear_Output")]
                assert source.name not in keep, f"{source.name} and {name} are both float"
                assert any(v.endswith("_DequantizeLinear_Output") for v in source.input), source.name


@pytest.mark.parametrize("layout", [*STATIC, "dynamic"])
@pytest.mark.parametrize("build", NETS)
def test_all_units_in_float_are_the_net_as_it_was(prepared, build, layout) -> None:
    model = prepared(build())
    quantized = laid_out(model, layout, {node.name for node in model.graph.node})

    assert quantized.graph == model.graph


def test_an_edge_that_only_float_nodes_use_has_no_pair(prepared) -> None:
    model = prepared(nets.residual())
    units = {unit.name: unit for unit in fusion_units(model)}
    keep = {*units["a1"].nodes, *units["a2"].nodes, *units["shortcut"].nodes}

    grids = on_grids(laid_out(model, keep_float=keep))

    assert "v4" not in grids  # between a1 and a2
    assert "a2" not in grids
    assert "shortcut" not in grids
    assert "a" in grids  # what b1 reads


def test_a_float_node_reads_what_a_float_node_made_though_int8_reads_it_too(prepared) -> None:
    model = prepared(nets.residual())
    units = {unit.name: unit for unit in fusion_units(model)}
    keep = {*units["a2"].nodes, *units["b2"].nodes}

    quantized = laid_out(model, keep_float=keep)

    sums = next(node for node in quantized.graph.node if node.name == "b.sum")
    assert "a" in sums.input  # not its grid, on which b1 works
    assert "a" in on_grids(quantized)


# Numbers


@pytest.mark.parametrize("build", NETS)
def test_signed_grids_give_the_same_answers_bit_for_bit(prepared, build) -> None:
    """So what VNNI was measured with holds for arm64."""
    model = prepared(build())
    for one, other in zip(run(laid_out(model, "u8s8")), run(laid_out(model, "s8s8")), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("layout", [*STATIC, "dynamic"])
@pytest.mark.parametrize("build", NETS)
def test_a_layout_says_much_the_same_as_fp32(prepared, build, layout) -> None:
    model = prepared(build())
    wanted = run(model)
    for literal in (True, False):
        for one, other in zip(wanted, run(laid_out(model, layout), literal=literal), strict=True):
            assert np.abs(one - other).max() < 0.1 * np.abs(one).max()


@pytest.mark.parametrize("layout", [*STATIC, "dynamic"])
@pytest.mark.parametrize("build", NETS)
def test_the_same_arguments_give_the_same_bytes(prepared, build, layout, tmp_path) -> None:
    model = prepared(build())
    keep = fusion_units(model)[1].nodes
    found = calibrate.ranges(model, frames(), "minmax", 1, lambda _text: None)
    onnx.save(model, tmp_path / "prepared.onnx")
    for name, order in (("one", keep), ("two", keep[::-1])):
        quantize.lay_out(tmp_path / "prepared.onnx", tmp_path / name, found, layout=layout, keep_float=order)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# Which axis the channels of a table lie along


def columns(kind: str, **attributes) -> onnx.ModelProto:
    """A product whose outputs differ a thousandfold in size, so that a wrong axis ruins the small ones."""
    net = nets.Net(1, 3, 16, 16)
    flat = net.node("Reshape", "image", net.constant(np.array([48, 16])))
    table = net.random.normal(size=(16, 16)).astype(np.float32) * np.geomspace(1e-3, 1.0, 16, dtype=np.float32)
    table = table.T if attributes.get("transB") else table
    out = net.node(kind, flat, net.constant(np.ascontiguousarray(table), "table"), name="out", **attributes)
    return net.model(out)


@pytest.mark.parametrize("layout", [*STATIC, "dynamic"])
@pytest.mark.parametrize(("kind", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_scales_lie_along_the_outputs(prepared, kind, attributes, layout) -> None:
    model = prepared(columns(kind, **attributes))
    for wanted, found in zip(run(model), run(laid_out(model, layout)), strict=True):
        error = np.abs(wanted - found).max(axis=0) / np.abs(wanted).max(axis=0)
        assert (error < 0.05).all()


def test_what_no_kernel_takes_stays_float() -> None:
    """A stack of matrices, scaled or turned products, and transposed convolutions, which have no int8 kernel here."""
    net = nets.Net(1, 8, 8, 8)
    value = net.conv("image", 8, 8, 3, name="conv")
    stacked = net.node("MatMul", value, net.weights(8, 8, 8), name="stacked")
    up = net.node("ConvTranspose", stacked, net.weights(8, 4, 2, 2), name="up", strides=[2, 2], group=1)
    rows = net.node("Reshape", up, net.constant(np.array([64, 16])))
    scaled = net.node("Gemm", rows, net.weights(16, 4), name="scaled", alpha=0.5)
    turned = net.node("Gemm", scaled, net.weights(64, 4), name="turned", transA=1)

    placement = place(Graph(net.model(turned)))

    assert placement.nodes == {"conv"}


def test_a_table_that_two_layers_share_serves_both(prepared) -> None:
    net = nets.Net(1, 3, 16, 16)
    flat = net.node("Reshape", "image", net.constant(np.array([48, 16])))
    table, bias = net.weights(16, 16, name="table"), net.constant(np.linspace(-1, 1, 16, dtype=np.float32), "bias")
    first = net.node("Relu", net.node("Gemm", flat, table, bias, name="first"))
    model = prepared(net.model(net.node("Gemm", first, table, bias, name="second", transB=1)))

    quantized = laid_out(model)

    for wanted, found in zip(run(model), run(quantized), strict=True):
        assert np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()
    assert len([name for name in weights_of(quantized) if name.startswith("table") and name.endswith("quantized")]) == 2


def test_a_channel_without_weights_keeps_its_bias(prepared) -> None:
    net = nets.Net(1, 3, 16, 16)
    model = net.model(net.conv("image", 3, 4, 3, name="conv"))
    weight, bias = (next(t for t in model.graph.initializer if t.name == f"conv.{n}") for n in ("weight", "bias"))
    table = np.array(onnx.numpy_helper.to_array(weight))
    table[1] = 0.0
    weight.CopyFrom(onnx.numpy_helper.from_array(table, weight.name))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.float32([0.1, -2.0, 0.1, 0.1]), bias.name))
    model = prepared(model)

    for found in run(laid_out(model)):
        assert np.allclose(found[:, 1], -2.0, atol=0.05)


def test_an_output_of_the_net_keeps_its_name_and_passes_its_grid(prepared) -> None:
    net = nets.Net(1, 3, 16, 16)
    inner = net.conv("image", 3, 8, 3, name="inner")
    model = net.model(inner)
    last = net.conv(inner, 8, 4, 3, name="last")
    model = net.model(last)
    model.graph.output.append(helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, [1, 8, 16, 16]))

    quantized = laid_out(prepared(model))

    assert [value.name for value in quantized.graph.output] == ["last", "inner"]
    makers = {value: node.op_type for node in quantized.graph.node for value in node.output}
    assert (makers["last"], makers["inner"]) == ("DequantizeLinear", "DequantizeLinear")


def test_what_a_subgraph_takes_from_around_it_stays(prepared) -> None:
    """A branch that reads a convolution's output before its ReLU, and a table that only the branch reads."""
    net = nets.Net(1, 3, 16, 16)
    inner = net.conv("image", 3, 8, 3, name="inner")
    value = net.node("Relu", inner)
    offset = net.constant(np.full((1, 8, 1, 1), 0.5, np.float32), "offset")
    branches = {}
    for name, kind in (("then_branch", "Add"), ("else_branch", "Sub")):
        out = helper.make_tensor_value_info(f"{name}.out", onnx.TensorProto.FLOAT, [1, 8, 16, 16])
        branches[name] = helper.make_graph([helper.make_node(kind, [inner, offset], [out.name])], name, [], [out])
    which = net.node("Greater", net.node("ReduceMax", value, keepdims=0), net.constant(np.float32(0.1)))
    chosen = net.node("If", which, **branches)
    model = prepared(net.model(net.conv(net.node("Add", value, chosen), 8, 4, 3, name="last")))

    assert "If" in {node.op_type for node in model.graph.node}
    for layout in (*STATIC, "dynamic"):
        for wanted, found in zip(run(model), run(laid_out(model, layout)), strict=True):
            assert np.abs(wanted - found).max() < 0.1 * np.abs(wanted).max()


# Refusals


def test_an_unknown_layout_names_the_known_ones(prepared) -> None:
    with pytest.raises(UsageError, match="no layout 'explicit'; there are: u8s8, u8s8-7bit, s8s8, dynamic"):
        quantize.laid_out(prepared(nets.residual()), {}, layout="explicit")


def test_a_graph_without_names_is_refused() -> None:
    model = nets.residual()
    model.graph.node[1].name = model.graph.node[0].name
    with pytest.raises(CompileError, match="`prepare` it first"):
        quantize.laid_out(model, {}, layout="u8s8")


def test_an_opset_without_grids_per_channel_is_refused() -> None:
    model = nets.residual()
    model.opset_import[0].version = 12
    with pytest.raises(CompileError, match="opset 12 has no grid per channel; expected 13 or later"):
        quantize.laid_out(model, {}, layout="u8s8")


def test_tables_that_are_listed_as_inputs_are_tables(prepared) -> None:
    model = nets.residual()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    ready = prepared(model)

    assert [value.name for value in ready.graph.input] == ["image"]
    assert laid_out(ready).graph == laid_out(prepared(nets.residual())).graph


def test_preparing_names_every_node(prepared) -> None:
    model = nets.residual()
    for node in model.graph.node:
        node.name = ""

    names = [node.name for node in prepared(model).graph.node]

    assert all(names)
    assert len(set(names)) == len(names)
