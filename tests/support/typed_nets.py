"""Small nets of the shapes that matter to a quantizer, as ONNX, with random weights that keep values in bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


class Net:
    """Writes a graph layer by layer; each method returns the name of the value that it made."""

    def __init__(self, shape: list[int], seed: int = 0) -> None:
        self._random, self._shape = np.random.default_rng(seed), shape
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        made = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], made, **attributes))
        return made

    def constant(self, value: Array, name: str | None = None) -> str:
        made = name or f"constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(value, made))
        return made

    def weights(self, *shape: int, fan: int, gain: float = 2.0) -> str:
        return self.constant(self._random.normal(0.0, np.sqrt(gain / fan), shape).astype(np.float32))

    def conv(self, x: str, into: int, out: int, size: int = 1, *, stride: int = 1, group: int = 1) -> str:
        weights = self.weights(out, into // group, size, size, fan=into // group * size * size)
        bias = self.constant(self._random.normal(0.0, 0.1, out).astype(np.float32))
        pads = [size // 2] * 4
        return self.op("Conv", x, weights, bias, pads=pads, strides=[stride] * 2, group=group, kernel_shape=[size] * 2)

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def linear(self, x: str, into: int, out: int) -> str:
        bias = self.constant(self._random.normal(0.0, 0.1, out).astype(np.float32))
        return self.op("Add", self.op("MatMul", x, self.weights(into, out, fan=into, gain=1.0)), bias)

    def norm(self, x: str, width: int) -> str:
        scale, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self.op("LayerNormalization", x, self.constant(scale), self.constant(bias), axis=-1, epsilon=1e-5)

    def norm_in_parts(self, x: str, width: int) -> str:
        """The same, taken apart as older exporters write it."""
        axes = self.constant(np.array([-1]))
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes))
        square = self.op("Pow", centred, self.constant(np.array(2.0, np.float32)))
        variance = self.op("Add", self.op("ReduceMean", square, axes), self.constant(np.array(1e-5, np.float32)))
        normal = self.op("Div", centred, self.op("Sqrt", variance))
        scaled = self.op("Mul", normal, self.constant(np.linspace(0.5, 2.0, width, dtype=np.float32)))
        return self.op("Add", scaled, self.constant(np.linspace(-1.0, 1.0, width, dtype=np.float32)))

    def model(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, self._shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.tensors,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(made)
        onnx.checker.check_model(inferred)
        return inferred


def resnet() -> onnx.ModelProto:
    """A stem, two residual blocks (one with a projection), a mean and a matrix."""
    net = Net([1, 3, 64, 64], 1)
    x = net.op("Relu", net.conv("image", 3, 32, 3, stride=2))
    y = net.conv(net.op("Relu", net.conv(x, 32, 32, 3)), 32, 32, 3)
    x = net.op("Relu", net.op("Add", y, x))
    y = net.conv(net.op("Relu", net.conv(x, 32, 64, 3, stride=2)), 64, 64, 3)
    x = net.op("Relu", net.op("Add", y, net.conv(x, 32, 64, stride=2)))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    head = net.weights(10, 64, fan=64)
    return net.model(net.op("Gemm", flat, head, net.constant(np.zeros(10, np.float32)), transB=1, name="scores"))


def mobilenet() -> onnx.ModelProto:
    """Inverted residuals: narrow, wide and depthwise, narrow, and a sum without an activation behind it."""
    net = Net([1, 3, 64, 64], 2)
    x = net.op("Clip", net.conv("image", 3, 32, 3, stride=2), *_limits(net))
    x = net.conv(net.op("Clip", net.conv(x, 32, 32, 3, group=32), *_limits(net)), 32, 24)
    for _ in range(2):
        y = net.op("Clip", net.conv(x, 24, 96), *_limits(net))
        y = net.op("Clip", net.conv(y, 96, 96, 3, group=96), *_limits(net))
        x = net.op("Add", x, net.conv(y, 96, 24))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.op("MatMul", flat, net.weights(24, 10, fan=24), name="scores"))


def _limits(net: Net) -> list[str]:
    return [net.constant(np.array(limit, np.float32)) for limit in (0.0, 6.0)]


def detector() -> onnx.ModelProto:
    """C2f: a split, bottlenecks whose results are all concatenated, pooling in a row, upsampling, two heads."""
    net = Net([1, 3, 64, 64], 3)
    x = net.silu(net.conv("image", 3, 32, 3, stride=2))
    x = net.silu(net.conv(x, 32, 64, 3, stride=2))
    whole = net.silu(net.conv(x, 64, 64))
    net.nodes.append(helper.make_node("Split", [whole], ["left", "right"], "split", axis=1, num_outputs=2))
    parts, y = ["left", "right"], "right"
    for _ in range(2):
        y = net.op("Add", y, net.silu(net.conv(net.silu(net.conv(y, 32, 32, 3)), 32, 32, 3)))
        parts.append(y)
    x = net.silu(net.conv(net.op("Concat", *parts, axis=1), 128, 64))
    pooled = [net.silu(net.conv(x, 64, 32))]
    pooled += [net.op("MaxPool", pooled[0], kernel_shape=[5, 5], pads=[2] * 4)]
    low = net.silu(net.conv(net.op("Concat", *pooled, axis=1), 64, 64, 3, stride=2))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    up = net.op("Resize", low, "", scales, mode="nearest")
    neck = net.silu(net.conv(net.op("Concat", up, x, axis=1), 128, 64))
    boxes = net.conv(net.silu(net.conv(neck, 64, 64, 3)), 64, 64)
    scores = net.conv(net.silu(net.conv(neck, 64, 64, 3)), 64, 16)
    net.op("Identity", boxes, name="boxes")
    net.op("Sigmoid", scores, name="scores")
    return net.model("boxes", "scores")


def transformer(*, in_parts: bool = False, loud: float = 1.0) -> onnx.ModelProto:
    """Patches, two blocks of attention and a wide layer, a mean and a head; ``loud`` scales the residual stream."""
    net, width, tokens = Net([1, 3, 64, 64], 4), 64, 64
    norm = net.norm_in_parts if in_parts else net.norm
    patches = net.weights(width, 3, 8, 8, fan=3 * 64)
    x = net.op("Conv", "image", patches, kernel_shape=[8, 8], strides=[8, 8])
    x = net.op("Reshape", x, net.constant(np.array([1, width, tokens])))
    x = net.op("Transpose", x, perm=[0, 2, 1])
    x = net.op("Add", x, net.weights(1, tokens, width, fan=16))
    x = net.op("Mul", x, net.constant(np.array(loud, np.float32)))
    for _ in range(2):
        x = net.op("Add", x, _attention(net, norm(x, width), width, tokens))
        y = net.linear(norm(x, width), width, 4 * width)
        y = net.op("Gelu", y)
        x = net.op("Add", x, net.linear(y, 4 * width, width))
    mean = net.op("ReduceMean", norm(x, width), net.constant(np.array([1])), keepdims=0)
    return net.model(net.op("MatMul", mean, net.weights(width, 10, fan=width), name="scores"))


def _attention(net: Net, x: str, width: int, tokens: int, heads: int = 4) -> str:
    def split(y: str, order: list[int]) -> str:
        shape = net.constant(np.array([1, tokens, heads, width // heads]))
        return net.op("Transpose", net.op("Reshape", y, shape), perm=order)

    query, value = (split(net.linear(x, width, width), [0, 2, 1, 3]) for _ in range(2))
    key = split(net.linear(x, width, width), [0, 2, 3, 1])
    scale = net.constant(np.array((width // heads) ** -0.5, np.float32))
    chosen = net.op("Softmax", net.op("Mul", net.op("MatMul", query, key), scale), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", chosen, value), perm=[0, 2, 1, 3])
    return net.linear(net.op("Reshape", mixed, net.constant(np.array([1, tokens, width]))), width, width)


def segmenter() -> onnx.ModelProto:
    """Down by convolutions, up by transposed ones."""
    net = Net([1, 3, 64, 64], 5)
    x = net.op("Relu", net.conv("image", 3, 32, 3, stride=2))
    y = net.op("Relu", net.conv(x, 32, 64, 3, stride=2))
    up = net.weights(64, 32, 2, 2, fan=64)
    y = net.op("ConvTranspose", y, up, net.constant(np.zeros(32, np.float32)), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(net.op("Concat", net.op("Relu", y), x, axis=1), 64, 32, 3))
    wide = net.weights(32, 16, 2, 2, fan=32)
    net.op("ConvTranspose", y, wide, kernel_shape=[2, 2], strides=[2, 2], name="mask")
    return net.model("mask")


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "detector": detector,
    "transformer": transformer,
    "segmenter": segmenter,
}


def frames(count: int, shape: tuple[int, ...] = (1, 3, 64, 64)) -> list[Array]:
    """Smooth random images, roughly normalized."""
    random = np.random.default_rng(7)
    rough = random.normal(0.0, 1.0, (count, shape[1], shape[2] // 8, shape[3] // 8)).repeat(8, 2).repeat(8, 3)
    return [np.ascontiguousarray((image + random.normal(0.0, 0.2, shape[1:]))[None], np.float32) for image in rough]
