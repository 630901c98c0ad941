"""Small fp32 nets of the kinds that a compiler meets, built in milliseconds, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph that grows by one layer a call; a call returns the value that it made, which names the node."""

    def __init__(self, *shape: int, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))

    def node(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes) -> str:
        out = name or f"{kind.lower()}_{len(self.nodes)}"
        outs = [out] if outputs == 1 else [f"{out}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, out, **attributes))
        return outs[0]

    def constant(self, value, name: str = "") -> str:
        name = name or f"constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int, fan: int = 0, gain: float = 1.0, name: str = "") -> str:
        fan = fan or (np.prod(shape[1:]) if len(shape) > 2 else shape[0])
        return self.constant(self.random.normal(0.0, np.sqrt(gain / fan), shape).astype(np.float32), name)

    def bias(self, size: int, name: str = "") -> str:
        return self.constant(self.random.normal(0.0, 0.1, size).astype(np.float32), name)

    def conv(
        self, x: str, into: int, out: int, size: int = 1, *, stride: int = 1, group: int = 1, name: str = ""
    ) -> str:
        weight = self.weights(out, into // group, size, size, gain=2.0, name=f"{name}.weight" if name else "")
        bias = self.bias(out, f"{name}.bias" if name else "")
        window = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        return self.node("Conv", x, weight, bias, name=name, group=group, **window)

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def linear(self, x: str, into: int, out: int, *, name: str = "") -> str:
        """As torch exports it: a product with [into, out], and an Add."""
        bias = self.bias(out)
        return self.node("Add", self.node("MatMul", x, self.weights(into, out), name=name), bias)

    def norm(self, x: str, width: int) -> str:
        scale, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self.node("LayerNormalization", x, self.constant(scale), self.constant(bias), axis=-1, epsilon=1e-5)

    def model(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        outs = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [self.input], outs, self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(made)
        onnx.checker.check_model(inferred)
        return inferred


def residual() -> onnx.ModelProto:
    """A stem, one block with a convolution on its shortcut, one without, and a head."""
    net = Net(1, 3, 16, 16)
    stem = net.node("Relu", net.conv("image", 3, 8, 3, name="stem"))
    pooled = net.node("MaxPool", stem, kernel_shape=[2, 2], strides=[2, 2])
    value = net.node("Relu", net.conv(pooled, 8, 16, 3, name="a1", stride=2))
    value = net.conv(value, 16, 16, 3, name="a2")
    value = net.node("Add", value, net.conv(pooled, 8, 16, 1, name="shortcut", stride=2), name="a.sum")
    skip = net.node("Relu", value, name="a")
    value = net.node("Relu", net.conv(skip, 16, 16, 3, name="b1"))
    value = net.node("Relu", net.node("Add", skip, net.conv(value, 16, 16, 3, name="b2"), name="b.sum"), name="b")
    flat = net.node("Flatten", net.node("GlobalAveragePool", value))
    head = net.node("Gemm", flat, net.weights(4, 16), net.constant(np.ones(4, np.float32)), name="scores", transB=1)
    return net.model(head)


def split_and_concat() -> onnx.ModelProto:
    """A detector's block (C2f): SiLU, a split, two bottlenecks in a row, everything concatenated."""
    net = Net(1, 3, 16, 16)
    net.node(
        "Split", net.silu(net.conv("image", 3, 16, 3, name="enter")), name="half", outputs=2, axis=1, num_outputs=2
    )
    parts = ["half.0", "half.1"]
    for i in range(2):
        inner = net.silu(net.conv(parts[-1], 8, 8, 3, name=f"inner{i}a"))
        parts.append(net.node("Add", parts[-1], net.silu(net.conv(inner, 8, 8, 3, name=f"inner{i}b"))))
    joined = net.node("Concat", *parts, axis=1)
    leave = net.silu(net.conv(joined, 32, 16, 1, name="leave"))
    boxes = net.conv(leave, 16, 8, 1, name="boxes")
    out = net.node("Sigmoid", net.node("Reshape", boxes, net.constant(np.array([1, 8, 256]))), name="out")
    return net.model(out)


def transformer(depth: int = 2, size: int = 16, heads: int = 2) -> onnx.ModelProto:
    """Patches by a convolution, then pre-norm blocks with attention and GELU, then a head."""
    net = Net(1, 3, 16, 16)
    patches = net.conv("image", 3, size, 1, name="patch", stride=4)
    rows = net.node("Reshape", patches, net.constant(np.array([1, size, 16])))
    value = net.node("Add", net.node("Transpose", rows, perm=[0, 2, 1]), net.weights(1, 16, size), name="stream")
    for i in range(depth):
        value = _block(net, value, size, heads, f"block{i}")
    last = net.node("ReduceMean", net.norm(value, size), net.constant(np.array([1])), keepdims=0)
    head = net.node("Gemm", last, net.weights(4, size), net.constant(np.ones(4, np.float32)), name="scores", transB=1)
    return net.model(head)


def _block(net: Net, value: str, size: int, heads: int, name: str) -> str:
    def split(part: str, perm: list[int]) -> str:
        rows = net.linear(normed, size, size, name=f"{name}.{part}")
        shaped = net.node("Reshape", rows, net.constant(np.array([1, 16, heads, size // heads])))
        return net.node("Transpose", shaped, perm=perm)

    normed = net.norm(value, size)
    query, key, parts = split("q", [0, 2, 1, 3]), split("k", [0, 2, 3, 1]), split("v", [0, 2, 1, 3])
    scaled = net.node("Mul", query, net.constant(np.float32(0.35)))
    weights = net.node("Softmax", net.node("MatMul", scaled, key, name=f"{name}.scores"), axis=-1)
    mixed = net.node("Transpose", net.node("MatMul", weights, parts, name=f"{name}.mix"), perm=[0, 2, 1, 3])
    rows = net.node("Reshape", mixed, net.constant(np.array([1, 16, size])))
    value = net.node("Add", value, net.linear(rows, size, size, name=f"{name}.out"), name=f"{name}.sum1")
    inner = net.node("Gelu", net.linear(net.norm(value, size), size, 4 * size, name=f"{name}.up"))
    return net.node("Add", value, net.linear(inner, 4 * size, size, name=f"{name}.down"), name=f"{name}.sum2")
