"""Requested against real precision, on JSON by TensorRT's documented schema, in the spelling of 10 and of 11."""

from __future__ import annotations

import json

import pytest
import rtx
import typed_nets as nets

from compiler.tensorrt import inspection, layout, placement
from skerry.errors import CompileError

WORDS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "bf16": "Row major linear BFloat16",
    "fp32": "Row major linear FP32",
}
TYPES = {"int8": "Int8", "fp16": "Half", "bf16": "BFloat16", "fp32": "Float"}


def tensor(kind, *, eleven):
    if eleven:
        return {"Name": "t", "Location": "Device", "DataType": TYPES[kind], "Format": "kLINEAR"}
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format/Datatype": WORDS[kind]}


def layer(nodes, reads, makes, *, eleven=False, kind="CaskConvolution", metadata=True, **more):
    """One layer of an engine; ``nodes`` is what it stands for."""
    named = {"Metadata": "\u001e".join(f"[ONNX Layer: {node}]" for node in nodes)} if metadata else {}
    return {
        "Name": " + ".join(nodes),
        "LayerType": kind,
        "Inputs": [tensor(reads, eleven=eleven)],
        "Outputs": [tensor(makes, eleven=eleven)],
        "TacticName": "sm80_xmma_fprop",
        **named,
        **more,
    }


def engine(*layers, eleven=False):
    if eleven:
        borders = {"I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float"}]}
    else:
        borders = {"Bindings": ["image"]}
    return json.dumps({"Layers": list(layers), **borders})


ASKED = {"conv1": "int8", "conv2": "fp16", "head": "fp32"}
KINDS = {"conv1": "Conv", "conv2": "Conv", "head": "Gemm"}

spelled = pytest.mark.parametrize("eleven", [False, True], ids=["10", "11"])


def built(conv1="int8", conv2="fp16", head="fp32", **spelling):
    """An engine with three layers, each in a precision."""
    return engine(
        layer(["conv1", "relu1"], conv1, "int8" if conv1 == "int8" else conv1, **spelling),
        layer(["conv2"], conv2, conv2, **spelling),
        layer(["head"], head, head, kind="gemm", **spelling),
        eleven=spelling.get("eleven", False),
    )


@spelled
@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "names"])
def test_an_engine_that_is_what_was_asked_for_passes(eleven, metadata):
    found = inspection.inspect(built(eleven=eleven, metadata=metadata), ASKED, KINDS)

    assert [(x.name, x.kind, x.requested, x.real) for x in found.layers] == [
        ("conv1", "Conv", "int8", "int8"),
        ("conv2", "Conv", "fp16", "fp16"),
        ("head", "Gemm", "fp32", "fp32"),
    ]
    assert found.wrong() == []
    found.check()


@spelled
@pytest.mark.parametrize(
    ("real", "words"),
    [
        ({"conv1": "fp32", "conv2": "fp32"}, "2 of 3 layers .* conv1 .Conv.: int8 asked, fp32 built, conv2"),
        ({"conv1": "fp16"}, "1 of 3 .*: conv1 .Conv.: int8 asked, fp16 built"),
        ({"conv2": "fp32"}, "conv2 .Conv.: fp16 asked, fp32 built"),
        ({"conv1": "bf16"}, "int8 asked, bf16 built"),
    ],
)
def test_every_layer_that_is_wider_than_asked_is_found(real, words, eleven):
    found = inspection.inspect(built(**real, eleven=eleven), ASKED, KINDS)

    assert {layer.name for layer in found.wrong()} == set(real)
    with pytest.raises(CompileError, match=words):
        found.check()


@spelled
def test_each_of_a_real_nets_layers_is_found_when_it_alone_falls_back(eleven):
    model, ranges = rtx.calibrated("detector")
    asked = layout.requested(layout.lay_out(model, ranges))
    lesser = {"int8": "fp16", "fp16": "fp32"}

    for planted in asked:
        real = {**asked, planted: lesser[asked[planted]]}
        text = engine(
            *(
                layer([n], k, "fp16", eleven=eleven) if k == "int8" else layer([n], k, k, eleven=eleven)
                for n, k in real.items()
            ),
            eleven=eleven,
        )
        assert [x.name for x in inspection.inspect(text, asked, {}).wrong()] == [planted]


def test_a_narrower_layer_than_asked_is_no_fault():
    found = inspection.inspect(built(head="fp16"), ASKED, KINDS)

    assert found.wrong() == []


def test_int8_is_told_by_what_a_layer_reads():
    """The last int8 layer before a float one writes floats on purpose."""
    text = engine(layer(["conv1"], "int8", "fp16"))

    assert inspection.inspect(text, {"conv1": "int8"}, {}).layers[0].real == "int8"


def test_the_weights_type_goes_before_that_of_the_values():
    text = engine(layer(["conv1"], "int8", "int8", Weights={"Type": "Half", "Count": 9}))

    assert inspection.inspect(text, {"conv1": "int8"}, {}).layers[0].real == "fp16"


def test_conversions_are_counted_and_stand_for_no_node():
    text = engine(
        layer(["conv1"], "fp32", "int8", kind="Reformat"),
        layer(["conv1"], "int8", "int8"),
        layer(["conv1"], "int8", "fp32", kind="Reformat"),
    )

    found = inspection.inspect(text, {"conv1": "int8"}, {})

    assert found.reformats == 2
    assert found.layers[0].real == "int8"


def test_of_several_layers_for_one_node_the_widest_counts():
    text = engine(layer(["conv1"], "int8", "int8"), layer(["conv1"], "fp32", "fp32"))

    assert inspection.inspect(text, {"conv1": "int8"}, {}).wrong()


def test_a_layer_that_cannot_be_found_is_said_to_be_unknown():
    found = inspection.inspect(engine(layer(["conv1"], "int8", "int8")), ASKED, KINDS)

    assert [x.real for x in found.layers] == ["int8", None, None]
    found.check()


def test_an_engine_that_names_nothing_proves_nothing():
    found = inspection.inspect(engine(layer(["myelin"], "fp16", "fp16")), ASKED, KINDS)

    with pytest.raises(CompileError, match="names none of the graph's layers"):
        found.check()


def test_a_name_inside_another_name_is_not_that_name():
    found = inspection.inspect(engine(layer(["conv10"], "fp32", "fp32", metadata=False)), {"conv1": "int8"}, {})

    assert found.layers[0].real is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"Layers": ["conv1", "relu1"]}', "names alone; build the engine with detailed"),
        ('{"Bindings": []}', "no engine inspector's JSON"),
        ("conv1", "no engine inspector's JSON"),
        ("[]", "no engine inspector's JSON"),
    ],
)
def test_what_is_no_description_is_refused(text, words):
    with pytest.raises(CompileError, match=words):
        inspection.inspect(text, ASKED, KINDS)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("Half", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("TF32", "fp32"),
        ("BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("Row major Int8 format", "int8"),
        ("FP8", "fp8"),
        ("Int32", None),
        ("N/A due to dynamic shapes", None),
        ("kLINEAR", None),
        ("", None),
    ],
)
def test_tensorrts_words_for_a_precision(text, kind):
    assert inspection.precision(text) == kind


@spelled
def test_what_goes_in_and_out_is_told_in_either_spelling(eleven):
    assert inspection.inspect(built(eleven=eleven), ASKED, KINDS).tensors == {"image": "Float" if eleven else ""}


def test_requested_precisions_come_from_the_graph_itself():
    model, ranges = rtx.calibrated("transformer")

    assert set(layout.requested(model).values()) == {"fp32"}
    asked = layout.requested(layout.lay_out(model, ranges))
    assert list(asked.values()).count("int8") == 12
    assert asked["conv_0"] == "fp16"
    told = inspection.asked(layout.lay_out(model, ranges))
    assert {(x.name, x.requested, x.real) for x in told} == {(name, kind, None) for name, kind in asked.items()}
    assert {x.kind for x in told} == {"Conv", "MatMul"}
    assert set(asked) == {n.name for n in nets.transformer().graph.node if n.op_type in placement.WEIGHTED}
