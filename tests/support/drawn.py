"""Nets for graphs with processing in them: one that hands its input on, one whose input spells boxes and scores."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from skerry.execution.onnxrt import PROVIDER, session_options
from skerry.manifest import FORMAT, Classification, Detection, Interface, Preprocess, Tensor

DTYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


def interface(outputs, preprocess=None, postprocess=None, size=(8, 8), labels=(), dtype="float32"):
    preprocess = preprocess or Preprocess(resize="stretch", scale=1.0)
    channels = 1 if preprocess.color == "gray" else 3
    shape = [1, channels, *size] if preprocess.layout == "nchw" else [1, *size, channels]
    described = Interface(
        format=FORMAT,
        name="drawn",
        version=1,
        task="detection" if isinstance(postprocess, Detection) else "classification",
        inputs=[Tensor("image", dtype, shape)],
        outputs=[Tensor(name, "float32", list(shape)) for name, shape in outputs.items()],
        preprocess=preprocess,
        postprocess=postprocess or Classification(scores=next(iter(outputs))),
        labels=list(labels),
    )
    described.check()
    return described


def model(described, nodes, constants=(), opset=20):
    """From the interface's input to its outputs, for any batch."""
    entry = described.inputs[0]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "drawn",
        [info(entry.name, DTYPES[entry.dtype], ["batch", *entry.shape[1:]])],
        [info(t.name, TensorProto.FLOAT, ["batch", *t.shape[1:]]) for t in described.outputs],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def means(preprocess, size, dtype="float32"):
    """A net that says each channel's mean: how its input was made is all that counts."""
    channels = 1 if preprocess.color == "gray" else 3
    described = interface({"scores": [1, channels]}, preprocess, size=size, dtype=dtype)
    axes = numpy_helper.from_array(np.array([2, 3] if preprocess.layout == "nchw" else [1, 2]), "axes")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["scores"], keepdims=0),
    ]
    return described, model(described, nodes, [axes])


def spelled(count, classes, postprocess):
    """A detector whose gray input [1, 1, count, 4 + classes] is its boxes and its scores."""
    shapes = {"boxes": [1, count, 4], "scores": [1, count, classes]}
    preprocess = Preprocess(resize="stretch", scale=1.0, color="gray")
    labels = [f"class {i}" for i in range(classes)]
    described = interface(shapes, preprocess, postprocess, size=(count, 4 + classes), labels=labels)
    constants = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("one", [1]), ("last", [-1]))]
    constants.append(numpy_helper.from_array(np.array([4, classes], np.int64), "sizes"))
    nodes = [
        helper.make_node("Squeeze", ["image", "one"], ["rows"]),
        helper.make_node("Split", ["rows", "sizes"], ["boxes", "scores"], axis=-1),
    ]
    return described, model(described, nodes, constants)


def session(built):
    """Runs a model: a dictionary in, a dictionary out."""
    running = ort.InferenceSession(built.SerializeToString(), session_options(1), providers=[PROVIDER])
    names = [output.name for output in running.get_outputs()]
    entry = running.get_inputs()[0].name
    return lambda value: dict(zip(names, running.run(None, {entry: value}), strict=True))


def checked(built: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(built, full_check=True)
    return built
