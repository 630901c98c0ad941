"""Foreign graphs that are odd and right: each is adopted, and computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import (
    CONV,
    DOUBLE,
    FLOAT,
    HALF,
    HEAD,
    INT64,
    SHAPE,
    UINT8,
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
from onnx import TensorProto, helper, numpy_helper

from compiler.child.adopt import adopt
from compiler.child.foreign_run import Wish

RELU = node("Relu", ["c"], ["r"])
ALL = [*CONV, *HEAD]
NORM = [
    held("s", [1.1, 0.9, 1.2, 0.8], np.float32),
    held("o", array(4)),
    held("m", array(4)),
    held("v", [1, 2, 3, 0.5], np.float32),
]


def norm(source="c", out="n", **more):
    return node("BatchNormalization", [source, "s", "o", "m", "v"], [out], **more)


def constants_in_nodes():
    nodes = [node("Constant", [], [t.name], value=t) for t in ALL]
    return graph([*nodes, conv(), RELU, *head("r")])


def constants_of_every_kind():
    nodes = [
        node("Constant", [], ["one"], value_float=1.5),
        node("Constant", [], ["four"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
        node("Constant", [], ["axis"], value_ints=[1]),
        node("Constant", [], ["way"], value_int=0),
        conv(),
        *head("c", "h"),
        node("Mul", ["h", "one"], ["m"]),
        node("Add", ["m", "four"], ["a"]),
        node("ReduceSum", ["a", "axis"], ["total"]),
        node("Gather", ["total", "way"], ["first"]),
        node("Sub", ["a", "first"], ["scores"]),
    ]
    return graph(nodes, ALL)


def identities_on_weights():
    nodes = [node("Identity", ["w0"], ["w1"]), node("Identity", ["w1"], ["w"]), conv(), *head("c")]
    return graph(nodes, [held("w0", array(4, 3, 3, 3)), CONV[1], *HEAD])


def sparse_weights():
    model = plain()
    dense = np.zeros((4, 5), np.float32)
    dense[1, 2], dense[3, 0] = 1.5, -2.0
    values = held("f", dense[np.nonzero(dense)])
    indices = held("f_indices", np.stack(np.nonzero(dense), 1), np.int64)
    model.graph.initializer.remove(model.graph.initializer[2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 5]))
    return model


def sparse_constant():
    values, indices = held("", [2.0, -1.0], np.float32), held("", [3, 11], np.int64)
    sparse = helper.make_sparse_tensor(values, indices, [4, 5])
    return graph([node("Constant", [], ["f"], sparse_value=sparse), conv(), *head("c")], CONV, opset=13)


def channels_last():
    nodes = [node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]), conv("t"), *head("c")]
    return graph(nodes, ALL, image=value("image", shape=[1, 8, 8, 3]))


def bytes_channels_last():
    nodes = [
        node("Cast", ["image"], ["x"], to=FLOAT),
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Div", ["t", "most"], ["d"]),
        conv("d"),
        *head("c"),
    ]
    return graph(nodes, [*ALL, held("most", 255.0, np.float32)], image=value("image", UINT8, ["n", 8, 8, 3]))


def renamed(names):
    model = plain()
    for item in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        item.name = names.get(item.name, item.name)
    for each in model.graph.node:
        each.name = names.get(each.op_type, "")
        for field in (each.input, each.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
    return model


def shape_arithmetic():
    """What exporters write for x.view(x.size(0), -1)."""
    nodes = [
        conv(),
        node("Shape", ["c"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Unsqueeze", ["n", "first"], ["n1"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["c", "to"], ["flat"]),
        node("MatMul", ["flat", "g"], ["scores"]),
    ]
    more = [
        held("zero", 0, np.int64),
        held("first", [0], np.int64),
        held("rest", [-1], np.int64),
        held("g", array(256, 5)),
    ]
    return graph(nodes, [*CONV, *more], image=value("image", shape=["n", 3, 8, 8]), opset=13)


def decided_by(*nodes, name="yes", more=()):
    """An If between ReLU and its negative, whose condition is what ``nodes`` make of it."""
    then = branch("then", [node("Relu", ["c"], ["inner"])], "inner")
    other = branch("else", [node("Neg", ["c"], ["inner"])], "inner")
    decide = node("If", [name], ["r"], then_branch=then, else_branch=other)
    return graph([conv(), *nodes, decide, *head("r")], [*ALL, *more])


def decided_by_shape():
    """What torch's legacy exporter writes for squeeze(1): only if the axis has a size of one."""
    nodes = [
        node("Shape", ["c"], ["shape"]),
        node("Gather", ["shape", "at"], ["size"]),
        node("Equal", ["size", "at"], ["yes"]),
    ]
    return decided_by(*nodes, more=[held("at", 1, np.int64)])


def nested_decisions():
    inside = branch("in", [node("Add", ["c", "k"], ["x"])], "x", [held("k", 0.5, np.float32)])
    beside = branch("out", [node("Sub", ["c", "c"], ["x"])], "x")
    deep = [node("If", ["no"], ["y"], then_branch=beside, else_branch=inside), node("Mul", ["y", "k"], ["z"])]
    then = branch("then", deep, "z", [held("k", 2.0, np.float32)])
    other = branch("else", [node("Identity", ["c"], ["z"])], "z")
    decide = node("If", ["yes"], ["r"], then_branch=then, else_branch=other)
    return graph([conv(), decide, *head("r")], [*ALL, held("yes", True), held("no", False)])


def halves():
    nodes = [conv(), RELU, *head("r")]
    tensors = [numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in ALL]
    return graph(nodes, tensors, image=value("image", HALF, SHAPE), outputs=[value("scores", HALF)])


def half_inside():
    nodes = [node("Cast", ["image"], ["h"], to=HALF), node("Cast", ["h"], ["x"], to=FLOAT), conv("x"), *head("c")]
    return graph(nodes, ALL)


def doubles():
    nodes = [
        node("Flatten", ["image"], ["flat"]),
        node("ConstantOfShape", ["one"], ["k"], value=held("", [0.25], np.float64)),
        node("Add", ["flat", "k"], ["a"]),
        node("MatMul", ["a", "g"], ["scores"]),
    ]
    more = [held("one", [1], np.int64), held("g", array(192, 5, dtype=np.float64))]
    return graph(nodes, more, image=value("image", DOUBLE, SHAPE), outputs=[value("scores", DOUBLE)])


def softmax_of_old():
    """Until opset 13 it flattened what came behind its axis."""
    return graph([conv(), node("Softmax", ["c"], ["r"], axis=1), *head("r")], ALL, opset=11)


def own_function():
    function = helper.make_function(
        "mine", "Twice", ["x"], ["y"], [node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    model = graph([conv(), node("Twice", ["c"], ["r"], domain="mine"), *head("r")], ALL, opset=18, domains=["mine"])
    model.functions.append(function)
    return model


def with_auxiliary_output():
    return graph([conv(), node("Relu", ["c"], ["r"]), *head("r")], ALL, outputs=[value("scores"), value("r")])


def best_class():
    nodes = [
        conv(),
        *head("c", "h"),
        node("ArgMax", ["h"], ["best"], axis=1),
        node("Cast", ["best"], ["scores"], to=TensorProto.INT32),
    ]
    return graph(nodes, ALL, outputs=[value("scores", TensorProto.INT32)])


def old(opset, nodes, more=(), **kinds):
    return graph([conv(), *nodes, *head("r")], [*ALL, *more], opset=opset, **kinds)


ADOPTED = {
    "plain": plain,
    "opset 7": lambda: plain(7),
    "opset 9, initializers listed as inputs": lambda: plain(9, listed=True, ir=3),
    "unfused batch norm, opset 9, listed": lambda: graph(
        [conv(), norm(), *head("n")], [*ALL, *NORM], opset=9, listed=True, ir=3
    ),
    "batch norm, opset 15": lambda: graph([conv(), norm(training_mode=0), *head("n")], [*ALL, *NORM], opset=15),
    "constants in nodes": constants_in_nodes,
    "constants of every kind": constants_of_every_kind,
    "identities on weights": identities_on_weights,
    "identity at the end": lambda: graph([conv(), *head("c", "h"), node("Identity", ["h"], ["scores"])], ALL),
    "sparse weights": sparse_weights,
    "sparse constant": sparse_constant,
    "channels last": channels_last,
    "bytes, channels last": bytes_channels_last,
    "colons": lambda: renamed({"image": "image:0", "scores": "scores:0", "c": "conv:0", "w": "w:0", "r": "r:0"}),
    "slashes that collide": lambda: renamed(
        {"c": "a/b", "r": "a:b", "w": "/a/b/", "Conv": "/layer/Conv", "Relu": "layer:Conv"}
    ),
    "not ASCII": lambda: renamed(
        {"image": "изображение", "scores": "Größe", "c": "畳み込み", "w": "überall", "Conv": "ß"}
    ),
    "shape arithmetic": shape_arithmetic,
    "a condition that holds": lambda: decided_by(more=[held("yes", True)]),
    "a condition that does not": lambda: decided_by(more=[held("yes", False)]),
    "a condition in a list of one": lambda: decided_by(more=[held("yes", [True])]),
    "a condition on a shape": decided_by_shape,
    "conditions in conditions": nested_decisions,
    "dropout before opset 12": lambda: old(10, [node("Dropout", ["c"], ["r"], ratio=0.5)]),
    "dropout at rest": lambda: old(
        13, [node("Dropout", ["c", "p", "t"], ["r"])], [held("p", 0.5, np.float32), held("t", False)]
    ),
    "halves": halves,
    "half inside": half_inside,
    "doubles": doubles,
    "batch of any name": lambda: plain(
        image=value("image", shape=["N", 3, 8, 8]), outputs=[value("scores", shape=["N", 5])]
    ),
    "batch unknown": lambda: plain(image=value("image", shape=[None, 3, 8, 8])),
    "batch -1": lambda: plain(image=value("image", shape=[-1, 3, 8, 8]), outputs=[value("scores", shape=[-1, 5])]),
    "batch 0": lambda: plain(image=value("image", shape=[0, 3, 8, 8])),
    "size left open": lambda: plain(image=value("image", shape=["N", 3, "H", "W"])),
    "nothing said of the size": lambda: plain(image=value("image")),
    "upsample, opset 9": lambda: old(
        9, [node("Upsample", ["c", "k"], ["r"], mode="nearest")], [held("k", [1, 1, 2, 2], np.float32)]
    ),
    "linear upsample, opset 9": lambda: old(
        9, [node("Upsample", ["c", "k"], ["r"], mode="linear")], [held("k", [1, 1, 2, 2], np.float32)]
    ),
    "upsample, opset 7": lambda: old(7, [node("Upsample", ["c"], ["r"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])]),
    "resize, opset 10": lambda: old(
        10, [node("Resize", ["c", "k"], ["r"], mode="linear")], [held("k", [1, 1, 1.5, 2], np.float32)]
    ),
    "resize smaller, opset 10": lambda: old(
        10, [node("Resize", ["c", "k"], ["r"], mode="nearest")], [held("k", [1, 1, 0.6, 0.6], np.float32)]
    ),
    "resize, opset 11": lambda: old(
        11,
        [node("Resize", ["c", "e", "k"], ["r"], mode="cubic")],
        [held("e", [], np.float32), held("k", [1, 1, 2, 2], np.float32)],
    ),
    "softmax, opset 11": softmax_of_old,
    "clip, opset 6": lambda: old(7, [node("Clip", ["c"], ["r"], min=-0.1, max=0.4)]),
    "pad, opset 2": lambda: old(9, [node("Pad", ["c"], ["r"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)]),
    "slice, opset 1": lambda: old(9, [node("Slice", ["c"], ["r"], axes=[2, 3], starts=[1, 0], ends=[-1, 6])]),
    "top k, opset 1": lambda: old(9, [node("TopK", ["c"], ["r", "unused"], axis=3, k=2)]),
    "squeeze and unsqueeze, opset 11": lambda: old(
        11, [node("Unsqueeze", ["c"], ["u"], axes=[0]), node("Squeeze", ["u"], ["r"], axes=[0])]
    ),
    "split, opset 2": lambda: old(
        11, [node("Split", ["c"], ["p", "q"], axis=1, split=[1, 3]), node("Concat", ["q", "p"], ["r"], axis=1)]
    ),
    "sum, opset 11": lambda: old(
        11, [node("ReduceSum", ["c"], ["u"], axes=[2], keepdims=1), node("Add", ["c", "u"], ["r"])]
    ),
    "average pool, opset 7": lambda: old(
        7, [node("AveragePool", ["c"], ["r"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    ),
    "cast, opset 6": lambda: old(7, [node("Cast", ["c"], ["i"], to=INT64), node("Cast", ["i"], ["r"], to=FLOAT)]),
    "opset 21": lambda: old(21, [node("Reshape", ["c", "to"], ["r"])], [held("to", [1, 4, 4, 16], np.int64)], ir=10),
    "opset 23": lambda: old(23, [node("Transpose", ["c"], ["r"], perm=[0, 1, 3, 2])], ir=11),
    "opset 25": lambda: old(
        25, [node("Pad", ["c", "p"], ["r"])], [held("p", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)], ir=12
    ),
    "a function of its own": own_function,
    "weights that are computed": lambda: graph(
        [node("Transpose", ["f0"], ["f"], perm=[1, 0]), conv(), *head("c")], [*CONV, held("f0", array(5, 4))]
    ),
    "weights that nobody reads": lambda: graph([conv(), *head("c")], [*ALL, held("left", array(9))]),
    "nodes that nobody reads": lambda: graph([conv(), node("Exp", ["c"], ["lost"]), *head("c")], ALL),
    "two outputs": with_auxiliary_output,
    "the best class in 32 bits": best_class,
    "the domain by its full name": lambda: graph(
        [conv(), node("Relu", ["c"], ["r"], domain="ai.onnx"), *head("r")], ALL
    ),
}


def run(model, image):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:1]:
        dim.dim_param = "any"  # the original may say 0
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
    entry = session.get_inputs()[0]
    return session.run(None, {entry.name: image.astype(kinds.get(entry.type, np.float32))})


def is_plain(name):
    return bool(name) and name.isascii() and all(c.isalnum() or c in "_." for c in name)


def check_ours(model):
    """The laws of an adopted graph."""
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [20]
    assert len(model.graph.input) == 1
    assert not model.graph.sparse_initializer
    assert not model.functions
    assert not any(a.HasField("g") for each in model.graph.node for a in each.attribute)
    assert not {"Constant", "If", "Dropout"} & {each.op_type for each in model.graph.node}
    names = [each.name for each in model.graph.node]
    assert len(set(names)) == len(names)
    values = [v.name for v in [*model.graph.input, *model.graph.initializer]]
    assert all(
        is_plain(name) for name in [*names, *values, *(o for each in model.graph.node for o in each.output if o)]
    )
    for entry in [*model.graph.input, *model.graph.output]:
        assert entry.type.tensor_type.elem_type in (FLOAT, INT64, UINT8)
        assert all(d.dim_value > 0 for d in entry.type.tensor_type.shape.dim)
    assert not any(t.data_type in (HALF, DOUBLE) for t in model.graph.initializer)


@pytest.mark.parametrize("name", ADOPTED)
def test_an_odd_graph_is_adopted_and_computes_what_it_did(name, tmp_path):
    model = ADOPTED[name]()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    shape = [1, 8, 8, 3] if "channels last" in name else SHAPE

    _, adopted = adopt(path, Wish(shape, "image"))

    check_ours(adopted.model)
    image = np.random.default_rng(7).integers(0, 255, shape) if "bytes" in name else array(*shape, seed=7)
    for wanted, found in zip(run(model, image), run(adopted.model, image), strict=True):
        np.testing.assert_allclose(
            found, wanted, rtol=2e-2 if "hal" in name else 1e-5, atol=1e-3 if "hal" in name else 1e-6
        )


COMBINED = {
    "listed": {"listed": True},
    "dynamic": {"image": value("image", shape=["n", 3, 8, 8])},
    "old file": {"ir": 4},
}


@pytest.mark.parametrize("opset", range(7, 26))
@pytest.mark.parametrize("how", COMBINED)
def test_every_opset_is_brought_to_ours(opset, how, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(plain(opset, **COMBINED[how]), path)

    original, adopted = adopt(path, Wish(SHAPE, "image", ["scores"]))

    check_ours(adopted.model)
    assert adopted.opset == opset
    assert original.precision == "float32"


def test_weights_are_read_from_beside_the_file(tmp_path):
    onnx.save(plain(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    onnx.save(plain(), tmp_path / "whole.onnx")

    _, adopted = adopt(tmp_path / "net.onnx", Wish(SHAPE, "image"))
    _, whole = adopt(tmp_path / "whole.onnx", Wish(SHAPE, "image"))

    assert adopted.model == whole.model


def test_outputs_are_called_as_the_recipe_calls_them(tmp_path):
    onnx.save(renamed({"scores": "logits:0"}), tmp_path / "net.onnx")

    _, adopted = adopt(tmp_path / "net.onnx", Wish(SHAPE, "photo", ["scores"]))

    assert [v.name for v in adopted.model.graph.input] == ["photo"]
    assert [v.name for v in adopted.model.graph.output] == ["scores"]


def test_a_name_that_the_recipe_gives_is_nobody_elses(tmp_path):
    """An inner value is called as the output is to be called: one of them must give way."""
    onnx.save(renamed({"c": "scores", "scores": "end"}), tmp_path / "net.onnx")

    _, adopted = adopt(tmp_path / "net.onnx", Wish(SHAPE, "r", ["scores"]))

    check_ours(adopted.model)


def detector(boxes=9):
    """Boxes of fixed places, scores by the image, and suppression in the graph: as many rows as it finds."""
    corners = np.random.default_rng(3).random((1, boxes, 2)).astype(np.float32) * 6
    places = np.concatenate([corners, corners + 2], 2)
    nodes = [
        node("Reshape", ["image", "flat"], ["pixels"]),
        node("MatMul", ["pixels", "table"], ["raw"]),
        node("Sigmoid", ["raw"], ["sure"]),
        node("Reshape", ["sure", "classes"], ["all"]),
        node("NonMaxSuppression", ["places", "all", "most", "overlap", "least"], ["kept"]),
        node("Gather", ["kept", "two"], ["index"], axis=1),
        node("Gather", ["places", "index"], ["boxes"], axis=1),
        node("Gather", ["all", "index"], ["picked"], axis=2),
        node("Transpose", ["picked"], ["scores"], perm=[0, 2, 1]),
    ]
    more = [
        held("flat", [1, 192], np.int64),
        held("table", array(192, boxes) * 3),
        held("classes", [1, 1, boxes], np.int64),
        held("places", places),
        held("most", [5], np.int64),
        held("overlap", [0.5], np.float32),
        held("least", [0.5], np.float32),
        held("two", 2, np.int64),
    ]
    return graph(nodes, more, outputs=[value("boxes"), value("scores")], opset=13)


def test_a_detector_that_counts_is_filled_up_to_a_fixed_number_of_rows(tmp_path):
    onnx.save(detector(), tmp_path / "net.onnx")
    image = array(*SHAPE, seed=5) * 3

    original, adopted = adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", rows=7))

    check_ours(adopted.model)
    boxes, scores = run(adopted.model, image)
    wanted_boxes, wanted_scores = run(detector(), image)
    count = wanted_scores.shape[1]
    assert 0 < count < 7
    assert (boxes.shape, scores.shape) == ((1, 7, 4), (1, 7, 1))
    np.testing.assert_array_equal(boxes[:, :count], wanted_boxes)
    np.testing.assert_array_equal(scores[:, :count], wanted_scores)
    assert not scores[:, count:].any()
    assert original.ours(original.run()(image), adopted.rows)["boxes"].shape == (1, 7, 4)


def test_a_graph_may_keep_its_batch_open(tmp_path):
    onnx.save(plain(11, image=value("image", shape=["n", 3, 8, 8])), tmp_path / "net.onnx")

    _, adopted = adopt(tmp_path / "net.onnx", Wish(SHAPE, "image", batch=(1, 6)))

    assert adopted.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    six = array(6, *SHAPE[1:], seed=4)
    together = run(adopted.model, six)[0]
    np.testing.assert_allclose(together[3:4], run(adopted.model, six[3:4])[0], rtol=1e-5, atol=1e-6)
