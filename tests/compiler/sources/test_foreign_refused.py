"""Foreign files that must not be compiled: each is refused in one sentence that names what is wrong, and where."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import (
    CONV,
    FLOAT,
    HEAD,
    INT64,
    SHAPE,
    array,
    branch,
    conv,
    graph,
    head,
    held,
    node,
    plain,
    value,
)
from onnx import TensorProto, helper

from compiler.child.adopt import adopt
from compiler.child.foreign_run import Wish
from skerry.errors import CompileError, FormatError, SkerryError, UsageError

ALL = [*CONV, *HEAD]
WISH = Wish(SHAPE, "image")


def middle(*nodes, more=(), **kinds):
    """Nodes between "c" and "r" of an ordinary net."""
    return graph([conv(), *nodes, *head("r")], [*ALL, *more], **kinds)


def looping(kind):
    body = helper.make_graph(
        [node("Identity", ["go"], ["goes"]), node("Mul", ["x", "x"], ["y"])],
        "body",
        [value("turn", INT64, []), value("go", TensorProto.BOOL, []), value("x", FLOAT, ["a", 4, 8, 8])],
        [value("goes", TensorProto.BOOL, []), value("y", FLOAT, ["a", 4, 8, 8])],
    )
    if kind == "Loop":
        return middle(node("Loop", ["n", "yes", "c"], ["r"], body=body), more=[held("n", 3), held("yes", True)])
    body = helper.make_graph(
        [node("Relu", ["x"], ["y"])], "body", [value("x", FLOAT, [4, 8, 8])], [value("y", FLOAT, [4, 8, 8])]
    )
    return middle(node("Scan", ["c"], ["r"], body=body, num_scan_inputs=1))


def decided_by_the_image():
    then, other = (branch(op, [node(op, ["c"], ["x"])], "x") for op in ("Relu", "Neg"))
    nodes = [
        node("ReduceMean", ["c"], ["mean"], keepdims=0),
        node("Less", ["mean", "zero"], ["dark"]),
        node("If", ["dark"], ["r"], name="choose", then_branch=then, else_branch=other),
    ]
    return middle(*nodes, more=[held("zero", 0.0, np.float32)])


def calling_itself():
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "F", ["x"], ["y"], [node("F", ["x"], ["y"], domain="mine")], imports)
    model = middle(node("F", ["c"], ["r"], domain="mine"), opset=18, domains=["mine"])
    model.functions.append(function)
    return model


def two_images():
    model = plain()
    model.graph.input.append(value("depth", shape=SHAPE))
    model.graph.node.append(node("Add", ["scores", "depth"], ["more"]))
    return model


def no_image():
    model = graph([node("Constant", [], ["image"], value=held("", array(*SHAPE))), conv(), *head("c")], ALL)
    del model.graph.input[:]
    return model


def bent(change):
    model = plain()
    change(model)
    return model


def shorten(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def unsort(model):
    model.graph.node.insert(0, model.graph.node.pop())


def sparse_beyond(model):
    values, indices = held("f", [1.0], np.float32), held("i", [99], np.int64)
    del model.graph.initializer[2]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 5]))


def counting():
    nodes = [node("NonZero", ["image"], ["places"]), node("Cast", ["places"], ["scores"], to=FLOAT)]
    return graph(nodes)


REFUSED = {
    "another's operator": (
        lambda: middle(node("Magic", ["c"], ["r"], name="wand", domain="acme")),
        CompileError,
        "Magic 'wand' is of the domain 'acme'",
    ),
    "ONNX Runtime's own": (
        lambda: middle(node("Gelu", ["c"], ["r"], domain="com.microsoft"), domains=["com.microsoft"]),
        CompileError,
        "domain 'com.microsoft'",
    ),
    "trees": (
        lambda: middle(node("Scaler", ["c"], ["r"], domain="ai.onnx.ml"), domains=["ai.onnx.ml"]),
        CompileError,
        "domain 'ai.onnx.ml'",
    ),
    "a loop": (lambda: looping("Loop"), CompileError, "Loop 'r' is a loop, which is not compiled yet"),
    "a scan": (lambda: looping("Scan"), CompileError, "Scan 'r' is a loop"),
    "a decision by the image": (decided_by_the_image, CompileError, "If 'choose' decides by what it sees"),
    "a function that calls itself": (calling_itself, FormatError, "must not be recursive"),
    "batch norm in training": (
        lambda: graph(
            [
                conv(),
                node("BatchNormalization", ["c", "b", "b", "b", "v"], ["r", "m1", "v1"], name="bn", training_mode=1),
                *head("r"),
            ],
            [*ALL, held("v", [1, 1, 1, 1], np.float32)],
            opset=15,
        ),
        CompileError,
        "BatchNormalization 'bn' is in training mode; call model.eval()",
    ),
    "dropout in training": (
        lambda: middle(
            node("Dropout", ["c", "p", "t"], ["r"], name="d"), more=[held("p", 0.5, np.float32), held("t", True)]
        ),
        CompileError,
        "Dropout 'd' is in training mode",
    ),
    "noise": (
        lambda: middle(node("RandomNormalLike", ["c"], ["r"], name="dice")),
        CompileError,
        "RandomNormalLike 'dice' gives other values at each run",
    ),
    "quantized already": (
        lambda: middle(
            node("QuantizeLinear", ["c", "k"], ["q"]),
            node("DequantizeLinear", ["q", "k"], ["r"]),
            more=[held("k", 0.1, np.float32)],
        ),
        CompileError,
        "quantized already; give the fp32 model",
    ),
    "two images": (two_images, CompileError, "takes 2 inputs (image, depth); expected one image"),
    "no image": (no_image, CompileError, "takes 0 inputs"),
    "whole numbers": (
        lambda: bent(lambda m: m.graph.input[0].CopyFrom(value("image", INT64, SHAPE))),
        SkerryError,
        "'image' is int64; expected float32",
    ),
    "a sequence": (
        lambda: middle(
            node("SplitToSequence", ["c"], ["parts"], axis=1),
            node("Relu", ["c"], ["r"]),
            outputs=[helper.make_tensor_sequence_value_info("parts", FLOAT, None)],
        ),
        CompileError,
        "'parts' is a sequence; expected a tensor",
    ),
    "three axes": (
        lambda: plain(image=value("image", shape=[3, 8, 8])),
        SkerryError,
        "is 3x8x8; expected one image, 1xCxHxW or 1xHxWxC",
    ),
    "a batch of four": (
        lambda: plain(image=value("image", shape=[4, 3, 8, 8])),
        CompileError,
        "is made for a batch of 4",
    ),
    "another size than asked for": (
        lambda: plain(image=value("image", shape=[1, 3, 9, 9])),
        UsageError,
        "takes 1x3x9x9; the size asked for is 1x3x8x8",
    ),
    "no such operator": (lambda: middle(node("Mirror", ["c"], ["r"])), FormatError, "Mirror"),
    "an operator that is too new": (lambda: middle(node("Gelu", ["c"], ["r"]), opset=19), FormatError, "Gelu"),
    "an operator that targets do not read": (
        lambda: middle(node("Swish", ["c"], ["r"], name="s"), opset=24, ir=11),
        SkerryError,
        "Swish",
    ),
    "an opset from the future": (lambda: plain(99), SkerryError, "99"),
    "an unknown attribute": (lambda: middle(node("Relu", ["c"], ["r"], colour="red")), FormatError, "colour"),
    "nodes in the wrong order": (lambda: bent(unsort), FormatError, "sorted"),
    "two values of one name": (lambda: middle(node("Relu", ["c"], ["r"]), node("Neg", ["c"], ["r"])), FormatError, "r"),
    "a value that nobody makes": (lambda: middle(node("Relu", ["nowhere"], ["r"])), FormatError, "nowhere"),
    "too few weights": (lambda: bent(shorten), SkerryError, "net.onnx"),
    "a sparse index beyond": (lambda: bent(sparse_beyond), SkerryError, "net.onnx"),
    "channels that do not fit": (
        lambda: graph([conv(), *head("c")], [held("w", array(4, 5, 3, 3)), *ALL[1:]]),
        CompileError,
        "net.onnx does not run",
    ),
    "text": (
        lambda: middle(node("Constant", [], ["t"], value_string="x"), node("Relu", ["c"], ["r"])),
        CompileError,
        "holds text",
    ),
    "lists of tensors": (
        lambda: middle(
            node("SequenceConstruct", ["c"], ["s"]),
            node("SequenceAt", ["s", "k"], ["r"]),
            more=[held("k", 0, np.int64)],
        ),
        None,
        "",
    ),
    "as many rows as it finds": (counting, CompileError, "depends on what is in the image"),
    "no output": (lambda: bent(lambda m: m.graph.ClearField("output")), SkerryError, "output"),
    "no node": (lambda: bent(lambda m: m.graph.ClearField("node")), FormatError, "has no nodes"),
    "no opset": (lambda: bent(lambda m: m.ClearField("opset_import")), FormatError, "does not say of which opset"),
    "an operator that is raised to something else": (
        lambda: middle(node("Hardmax", ["c"], ["r"], name="best", axis=1), opset=11),
        CompileError,
        "in opset 20 it computes something else than in its own 11, first at Hardmax 'best'; export it with opset 20",
    ),
    "an operator that changed its mind": (
        lambda: middle(
            node("GroupNormalization", ["c", "k", "k"], ["r"], name="groups", num_groups=2),
            more=[held("k", [1, 2, 3, 4], np.float32)],
            opset=21,
            ir=10,
        ),
        CompileError,
        "GroupNormalization 'groups' is not in opset 20",
    ),
    "opset 6": (
        lambda: middle(
            node("Add", ["c", "k"], ["r"], broadcast=1, axis=1), more=[held("k", [1, 2, 3, 4], np.float32)], opset=6
        ),
        CompileError,
        "does not run on ONNX Runtime as it is (opset 6): Could not find an implementation for Add(6)",
    ),
    "weights that are no numbers": (
        lambda: graph([conv(), *head("c")], [held("w", np.full((4, 3, 3, 3), np.nan, np.float32)), *ALL[1:]]),
        CompileError,
        "'w' holds NaN",
    ),
    "the image as it came": (
        lambda: graph([node("Relu", ["image"], ["scores"])], outputs=[value("image", shape=SHAPE), value("scores")]),
        CompileError,
        "output 'image' is the image itself, or a constant",
    ),
    "a constant for an answer": (
        lambda: graph([node("Shape", ["image"], ["scores"])], outputs=[value("scores", INT64)]),
        CompileError,
        "output 'scores' is the image itself, or a constant",
    ),
    "more memory than there is": (
        lambda: middle(
            node("Expand", ["one", "k"], ["e"]),
            node("ReduceSum", ["e"], ["s"], keepdims=0),
            node("Mul", ["c", "s"], ["r"]),
            more=[held("one", 1.0, np.float32), held("k", [1 << 30, 1 << 30], np.int64)],
        ),
        CompileError,
        "does not run on ONNX Runtime",
    ),
    "upsampling to less": (
        lambda: middle(node("Upsample", ["c", "k"], ["r"]), more=[held("k", [1, 1, 0.5, 0.5], np.float32)], opset=9),
        CompileError,
        "does not run",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_cannot_be_compiled_is_refused_by_name(name, tmp_path):
    make, kind, said = REFUSED[name]
    (tmp_path / "net.onnx").write_bytes(make().SerializeToString())
    if kind is None:
        adopt(tmp_path / "net.onnx", WISH)  # odd, but right
        return

    with pytest.raises(kind) as refused:
        adopt(tmp_path / "net.onnx", WISH)

    text = str(refused.value)
    assert text.startswith("net.onnx")
    assert said in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"PK\x03\x04", b"{}", b"\xff" * 999, plain().SerializeToString()[:-200]], ids=range(6)
)
def test_bytes_that_are_no_graph_are_refused(raw, tmp_path):
    (tmp_path / "net.onnx").write_bytes(raw)

    with pytest.raises(FormatError, match=r"net\.onnx"):
        adopt(tmp_path / "net.onnx", WISH)


def test_outputs_that_the_recipe_does_not_name_are_refused(tmp_path):
    onnx.save(plain(), tmp_path / "net.onnx")

    with pytest.raises(CompileError, match=r"gives 1 output\(s\) \(scores\); the recipe names 2: a, b"):
        adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", ["a", "b"]))


def test_a_batch_that_is_fixed_is_not_opened(tmp_path):
    onnx.save(plain(), tmp_path / "net.onnx")

    with pytest.raises(CompileError, match="is made for a batch of 1, asked for are 1 to 8"):
        adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", batch=(1, 8)))


def test_a_graph_that_holds_its_batch_in_a_constant_is_not_opened(tmp_path):
    """It says that its batch is open, and reshapes to one image all the same."""
    nodes = [conv(), node("Reshape", ["c", "to"], ["r"]), *head("r")]
    model = graph(nodes, [*ALL, held("to", [1, 4, -1, 8], np.int64)], image=value("image", shape=["n", 3, 8, 8]))
    onnx.save(model, tmp_path / "net.onnx")

    adopt(tmp_path / "net.onnx", WISH)
    with pytest.raises(CompileError, match="does not give one row of outputs for each of"):
        adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", batch=(1, 8)))


def test_a_graph_that_breaks_off_with_several_images_is_not_opened(tmp_path):
    nodes = [conv(), node("Reshape", ["c", "to"], ["r"]), *head("r")]
    model = graph(nodes, [*ALL, held("to", [1, 4, 8, 8], np.int64)], image=value("image", shape=["n", 3, 8, 8]))
    onnx.save(model, tmp_path / "net.onnx")

    with pytest.raises(CompileError, match=r"does not run with 2 images at once \(.*leave it at batch 1"):
        adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", batch=(1, 8)))


# What lies outside of the file


def outside(tmp_path, location, offset=None, length=None, data=b"\0" * 4096):
    """A net whose first weight is kept elsewhere."""
    folder = tmp_path / "net"
    folder.mkdir()
    model = plain()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    said = {"location": location, "offset": offset, "length": length}
    for key, text in said.items():
        if text is not None:
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(text)))
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(data)
    (tmp_path / "secret").write_bytes(data)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").mkdir()
    return folder / "net.onnx"


def test_weights_beside_the_file_are_read(tmp_path):
    adopt(outside(tmp_path, "weights.bin", 64, 432), WISH)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../secret", "not below its own folder"),
        ("folder/../../secret", "not below its own folder"),
        ("{tmp}/secret", "not below its own folder"),
        ("link", "not below its own folder"),
        ("..\\secret", "not below its own folder"),
        ("", "not below its own folder"),
        ("missing.bin", "keeps weights in 'missing.bin', which is not beside it"),
        ("folder", "which is not beside it"),
        (".", "which is not beside it"),
        ("/dev/zero", "not below its own folder"),
    ],
)
def test_nothing_but_plain_files_below_the_folder_is_read(location, said, tmp_path):
    path = outside(tmp_path, location.replace("{tmp}", str(tmp_path)))

    with pytest.raises(FormatError, match=said):
        adopt(path, WISH)


@pytest.mark.parametrize(
    ("offset", "length", "said"),
    [
        (4000, 432, "too short"),
        (-8, 432, "before the beginning"),
        (0, 431, "needs 432 bytes, its entry says 431"),
        (0, 1 << 62, "needs 432 bytes"),
        (1 << 62, None, "too short"),
        ("one", None, "does not say where"),
        (0, -432, "before the beginning"),
    ],
)
def test_weights_that_are_not_there_are_not_read(offset, length, said, tmp_path):
    with pytest.raises(FormatError, match=said):
        adopt(outside(tmp_path, "weights.bin", offset, length), WISH)
