"""Each layer's precision, asked and real, and its error; and a precision that was asked for and did not come about."""

from __future__ import annotations

from pathlib import Path

import faulty
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from compiler.evidence import layers
from compiler.evidence.evidence import Layer
from compiler.evidence.layers_openvino import by_output
from compiler.graph.onnxfile import Probe, weights_of

CONVS = ["stem", "block.0.a", "block.0.b", "block.1.a", "block.1.b"]


@pytest.fixture
def net(tmp_path: Path) -> onnx.ModelProto:
    return faulty.prepared(faulty.chain(), tmp_path)


def described(
    original: onnx.ModelProto, shipped: onnx.ModelProto, folder: Path, exported: onnx.ModelProto | None = None
) -> list[Layer]:
    return layers.describe(original, shipped, faulty.frames(2), exported=exported, real=real(shipped, folder))


def real(shipped: onnx.ModelProto, folder: Path, backend: str = "onnxrt") -> dict[str, str]:
    onnx.save(shipped, folder / "shipped.onnx")
    return layers.real_here(folder / "shipped.onnx", backend)


def test_openvino_tells_what_it_built_of_each_layer(net: onnx.ModelProto, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    whole = faulty.quantized(net, tmp_path, faulty.found_ranges(net))

    asked = layers.describe(net, whole, [], real=real(whole, tmp_path, "openvino"))
    floats = layers.describe(net, net, [], real=real(net, tmp_path, "openvino"))

    assert {y.real for y in asked if y.kind == "Conv" and y.requested == "int8"} == {"int8"}
    assert {y.real for y in floats if y.kind == "Conv"} == {"fp32"}


def test_a_kernel_of_openvinos_is_found_by_the_node_whatever_was_done_to_it() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="a/fc"), helper.make_node("Relu", ["y"], ["z"])]
    graph = helper.make_model(helper.make_graph(nodes, "g", [], []))

    found = by_output(graph, [(["a/fc/WithoutBiases/DequantizationMultiply"], "u8"), (["q", "z"], "f32"), (["x"], "?")])

    assert found == {"y": "int8", "z": "fp32"}


def test_every_layer_is_named_as_the_user_names_it_in_the_graphs_order(net: onnx.ModelProto, tmp_path: Path) -> None:
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net))

    found = described(net, shipped, tmp_path, exported=faulty.chain())

    assert [layer.name for layer in found if layer.kind == "Conv"] == CONVS
    assert [layer.kind for layer in found] == ["Conv"] * 3 + ["Add"] + ["Conv"] * 2 + [
        "Add",
        "GlobalAveragePool",
        "Gemm",
    ]
    assert {layer.requested for layer in found} == {"int8"}
    assert {layer.real for layer in found} == {"int8"}
    assert layers.unkept(found) == []
    assert all(layer.sqnr_db is not None and 15 < layer.sqnr_db < 60 for layer in found)


def test_the_fp32_graph_against_itself_has_no_error(net: onnx.ModelProto, tmp_path: Path) -> None:
    found = described(net, net, tmp_path)

    assert {(layer.requested, layer.real, layer.sqnr_db) for layer in found} == {("fp32", "fp32", 200.0)}
    assert [layer.kind for layer in found].count("Relu") == 5  # fused into a convolution, and a layer all the same


def test_a_layer_that_is_kept_in_floats_says_so(net: onnx.ModelProto, tmp_path: Path) -> None:
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net), ("node_c0b", "node_add0"))

    found = {layer.name: layer for layer in described(net, shipped, tmp_path, exported=faulty.chain())}

    assert (found["block.0.b"].requested, found["block.0.b"].real) == ("fp32", "fp32")
    assert (found["block.0.a"].requested, found["block.0.a"].real) == ("int8", "int8")


def test_int8_that_was_asked_for_and_ran_in_floats_is_found(net: onnx.ModelProto, tmp_path: Path) -> None:
    """A scale that is no constant: the runtime cannot take it into an integer kernel, and says nothing."""
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net))
    shipped.graph.node.insert(0, helper.make_node("Abs", ["c1a.relu_scale"], ["late_scale"], name="late"))
    shipped.graph.input.append(helper.make_tensor_value_info("c1a.relu_scale", TensorProto.FLOAT, []))
    for node in shipped.graph.node:
        if node.name.startswith("c1a.relu_"):
            node.input[1] = "late_scale"

    (wrong,) = layers.unkept(layers.describe(net, shipped, [], exported=faulty.chain(), real=real(shipped, tmp_path)))

    assert (wrong.name, wrong.requested, wrong.real) == ("block.1.b", "int8", "fp32")


def test_an_operator_without_an_integer_kernel_runs_in_floats_and_is_named(tmp_path: Path) -> None:
    """Q/DQ stand around a transposed convolution, and ONNX Runtime's CPU kernels for it are float."""
    net = faulty.Net()
    value = net.conv("image", "stem", "stem")
    weight = net.values("up.weight", faulty.CHANNELS, faulty.CHANNELS, 3, 3, scale=0.1)
    value = net.add("ConvTranspose", [value, weight], "up", "up")
    exported = net.head(net.add("Relu", [value], "up.relu", "up"))
    model = faulty.prepared(exported, tmp_path)
    shipped = faulty.quantized_by_the_book(model, tmp_path, faulty.found_ranges(model))

    found = described(model, shipped, tmp_path, exported=exported)

    (wrong,) = layers.unkept(found)
    assert (wrong.name, wrong.kind, wrong.requested, wrong.real) == ("up", "ConvTranspose", "int8", "fp32")


def test_half_precision_that_the_cpu_runs_in_single_is_found(tmp_path: Path) -> None:
    model = faulty.normed()
    half = convert_float_to_float16(model, keep_io_types=True)

    found = described(model, half, tmp_path)

    assert {layer.requested for layer in found} == {"fp16"}
    real = {layer.name: layer.real for layer in found}
    assert real["mlp.up"] == "fp32"  # no half precision kernel: cast, computed, cast back
    assert real["norm"] == "fp16"  # one fused kernel stands for the nine nodes
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 50 for layer in found)


def test_dynamic_quantization_is_read_from_its_integer_kernels(tmp_path: Path) -> None:
    exported = faulty.normed()
    model = faulty.prepared(exported, tmp_path)  # which fuses the normalization and drops the exporter's notes
    onnx.save(model, tmp_path / "model.onnx")
    quantize_dynamic(
        tmp_path / "model.onnx",
        tmp_path / "dynamic.onnx",
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )

    found = described(model, onnx.load(tmp_path / "dynamic.onnx"), tmp_path, exported=exported)

    whole = {layer.name: (layer.requested, layer.real) for layer in found if layer.kind in ("MatMul", "Conv")}
    assert whole == {"stem": ("fp32", "fp32"), "mlp.up": ("int8", "int8"), "mlp.down": ("int8", "int8")}
    assert layers.unkept(found) == []


def test_nodes_without_names_are_found_by_their_values(net: onnx.ModelProto, tmp_path: Path) -> None:
    """A foreign graph may name none of its nodes."""
    named = described(net, net, tmp_path, exported=faulty.chain())
    for node in net.graph.node:
        node.name = ""

    assert described(net, net, tmp_path, exported=faulty.chain()) == named


def test_a_layer_that_was_ruined_is_the_first_with_a_large_error(net: onnx.ModelProto, tmp_path: Path) -> None:
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net))
    scale = next(t for t in shipped.graph.initializer if t.name == "block.1.a.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(weights_of(shipped)[scale.name] * np.float32(1.5), scale.name))

    found = described(net, shipped, tmp_path, exported=faulty.chain())

    assert next(layer.name for layer in found if layer.sqnr_db is not None and layer.sqnr_db < 15) == "block.1.a"


def test_values_are_held_a_few_at_a_time_and_the_numbers_stay_the_same(net: onnx.ModelProto, tmp_path: Path) -> None:
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net))
    one_value = 4 * faulty.CHANNELS * faulty.SIZE**2

    whole = layers.describe(net, shipped, faulty.frames(3))
    bounded = layers.describe(net, shipped, faulty.frames(3), group_bytes=2 * one_value)

    assert bounded == whole
    groups = list(layers.groups(net, ["stem.relu", "c0a.relu", "add0", "mean", "scores"], one_value))
    assert groups == [["stem.relu"], ["c0a.relu"], ["add0"], ["mean", "scores"]]


def test_the_error_is_that_of_the_value_behind_its_pair(net: onnx.ModelProto, tmp_path: Path) -> None:
    shipped = faulty.quantized(net, tmp_path, faulty.found_ranges(net))
    tensor = faulty.frames(1)[0]

    (stem, *_) = layers.describe(net, shipped, [tensor])

    (reference,) = [value for _, value in Probe(net, ["stem.relu"], threads=1)(tensor)]
    behind = layers.behind_pairs(shipped)["stem.relu"]
    (rounded,) = [value for _, value in Probe(shipped, [behind], threads=1, literal=True)(tensor)]
    noise = float(((reference - rounded) ** 2).sum())
    assert stem.sqnr_db == pytest.approx(10 * np.log10(float((reference**2).sum()) / noise), abs=1e-3)
