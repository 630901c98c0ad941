"""A net with what surrounds it: from a model that takes tensors to one that takes frames and gives answers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from compiler.ingraph.answers import draw_answers
from compiler.ingraph.drawing import Drawing
from compiler.ingraph.preprocess import draw_input
from compiler.ingraph.suppress import BY_OPERATOR, Suppression
from skerry.errors import CompileError
from skerry.manifest import FRAMES, InGraph, Interface, Tensor

MIN_OPSET = 13  # axes of ReduceSum and Squeeze as inputs
_DTYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class Surroundings:
    """What to put around a net.

    Attributes:
        graph: what a bundle says of it.
        slack: lowers the threshold of detections; a release lowers it by its proof's margin, for the proof lists the
            boxes that nearly are. A reader who wants the threshold itself leaves it at 0.
        suppression: the form of NMS. The fixed one is TensorRT's, and so is then what is drawn before the net.
    """

    graph: InGraph
    slack: float = 0.0
    suppression: Suppression = BY_OPERATOR


def surround(model: onnx.ModelProto, interface: Interface, around: Surroundings) -> onnx.ModelProto:
    """The model with ``around`` drawn around it. Its batch is the net's: fixed, or a symbol.

    The net's own outputs stay, and its input tensor becomes one, so that a proof holds each to the reference.

    Raises:
        CompileError: the model is of an older opset, is not the interface's, or has a tensor of a name that we need.
    """
    _check(model, interface, around)
    made, d = onnx.ModelProto(), Drawing()
    made.CopyFrom(model)
    graph, entry = made.graph, interface.inputs[0]
    nodes, net_input = list(graph.node), next(i for i in graph.input if i.name == entry.name)
    del graph.node[:], graph.input[:]
    if around.graph.frame is None:
        graph.input.append(net_input)
    else:
        dtype = net_input.type.tensor_type.elem_type
        tensorrt = around.suppression.fixed
        d.name(draw_input(d, FRAMES, interface, around.graph.frame, dtype, tensorrt=tensorrt), entry.name)
        shape = [_batch(net_input), *around.graph.frame, 3]
        graph.input.append(helper.make_tensor_value_info(FRAMES, TensorProto.UINT8, shape))
        graph.output.append(net_input)
    before = len(d.nodes)
    if around.graph.answers:
        draw_answers(d, interface, around.graph.frame, around.slack, around.suppression)
        graph.output.extend(_info(t, _batch(net_input)) for t in interface.answer_tensors())
    graph.node.extend([*d.nodes[:before], *nodes, *d.nodes[before:]])
    graph.initializer.extend(d.constants)
    return made


def _info(tensor: Tensor, batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _DTYPES[tensor.dtype], [batch, *tensor.shape[1:]])


def _batch(entry: onnx.ValueInfoProto) -> int | str:
    first = entry.type.tensor_type.shape.dim[0]
    return first.dim_value or first.dim_param or "batch"


def _check(model: onnx.ModelProto, interface: Interface, around: Surroundings) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if opset < MIN_OPSET:
        raise CompileError(f"a graph of opset {opset} cannot take pre- and post-processing in; raise it to {MIN_OPSET}")
    there = {i.name for i in model.graph.input} | {o.name for o in model.graph.output}
    missing = {t.name for t in [*interface.inputs, *interface.outputs]} - there
    if missing:
        raise CompileError(f"the model has no {', '.join(sorted(missing))}; it has {', '.join(sorted(there))}")
    inputs, outputs = interface.tensors(around.graph)
    ours = {t.name for t in [*inputs, *outputs]} - {t.name for t in [*interface.inputs, *interface.outputs]}
    taken = ours & (there | {name for node in model.graph.node for name in node.output})
    if taken:
        raise CompileError(
            f"the net has a tensor named {', '.join(sorted(taken))}, which processing in the graph needs"
        )
