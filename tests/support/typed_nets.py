"""Small nets of the shapes that matter to a quantizer, as ONNX, with random weights that keep values in bounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
from nets import Net

Array = np.ndarray


def norm_in_parts(net: Net, x: str, width: int) -> str:
    """A layer normalization, taken apart as older exporters write it."""
    axes = net.constant(np.array([-1]))
    centred = net.node("Sub", x, net.node("ReduceMean", x, axes))
    square = net.node("Pow", centred, net.constant(np.array(2.0, np.float32)))
    variance = net.node("Add", net.node("ReduceMean", square, axes), net.constant(np.array(1e-5, np.float32)))
    normal = net.node("Div", centred, net.node("Sqrt", variance))
    scaled = net.node("Mul", normal, net.constant(np.linspace(0.5, 2.0, width, dtype=np.float32)))
    return net.node("Add", scaled, net.constant(np.linspace(-1.0, 1.0, width, dtype=np.float32)))


def resnet() -> onnx.ModelProto:
    """A stem, two residual blocks (one with a projection), a mean and a matrix."""
    net = Net(1, 3, 64, 64, seed=1)
    x = net.node("Relu", net.conv("image", 3, 32, 3, stride=2))
    y = net.conv(net.node("Relu", net.conv(x, 32, 32, 3)), 32, 32, 3)
    x = net.node("Relu", net.node("Add", y, x))
    y = net.conv(net.node("Relu", net.conv(x, 32, 64, 3, stride=2)), 64, 64, 3)
    x = net.node("Relu", net.node("Add", y, net.conv(x, 32, 64, stride=2)))
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    head = net.weights(10, 64, fan=64, gain=2.0)
    return net.model(net.node("Gemm", flat, head, net.constant(np.zeros(10, np.float32)), transB=1, name="scores"))


def mobilenet() -> onnx.ModelProto:
    """Inverted residuals: narrow, wide and depthwise, narrow, and a sum without an activation behind it."""
    net = Net(1, 3, 64, 64, seed=2)
    x = net.node("Clip", net.conv("image", 3, 32, 3, stride=2), *_limits(net))
    x = net.conv(net.node("Clip", net.conv(x, 32, 32, 3, group=32), *_limits(net)), 32, 24)
    for _ in range(2):
        y = net.node("Clip", net.conv(x, 24, 96), *_limits(net))
        y = net.node("Clip", net.conv(y, 96, 96, 3, group=96), *_limits(net))
        x = net.node("Add", x, net.conv(y, 96, 24))
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(net.node("MatMul", flat, net.weights(24, 10, fan=24, gain=2.0), name="scores"))


def _limits(net: Net) -> list[str]:
    return [net.constant(np.array(limit, np.float32)) for limit in (0.0, 6.0)]


def detector() -> onnx.ModelProto:
    """C2f: a split, bottlenecks whose results are all concatenated, pooling in a row, upsampling, two heads."""
    net = Net(1, 3, 64, 64, seed=3)
    x = net.silu(net.conv("image", 3, 32, 3, stride=2))
    x = net.silu(net.conv(x, 32, 64, 3, stride=2))
    whole = net.silu(net.conv(x, 64, 64))
    net.node("Split", whole, name="half", outputs=2, axis=1, num_outputs=2)
    parts, y = ["half.0", "half.1"], "half.1"
    for _ in range(2):
        y = net.node("Add", y, net.silu(net.conv(net.silu(net.conv(y, 32, 32, 3)), 32, 32, 3)))
        parts.append(y)
    x = net.silu(net.conv(net.node("Concat", *parts, axis=1), 128, 64))
    pooled = [net.silu(net.conv(x, 64, 32))]
    pooled += [net.node("MaxPool", pooled[0], kernel_shape=[5, 5], pads=[2] * 4)]
    low = net.silu(net.conv(net.node("Concat", *pooled, axis=1), 64, 64, 3, stride=2))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    up = net.node("Resize", low, "", scales, mode="nearest")
    neck = net.silu(net.conv(net.node("Concat", up, x, axis=1), 128, 64))
    boxes = net.conv(net.silu(net.conv(neck, 64, 64, 3)), 64, 64)
    scores = net.conv(net.silu(net.conv(neck, 64, 64, 3)), 64, 16)
    net.node("Identity", boxes, name="boxes")
    net.node("Sigmoid", scores, name="scores")
    return net.model("boxes", "scores")


def transformer(*, in_parts: bool = False, loud: float = 1.0) -> onnx.ModelProto:
    """Patches, two blocks of attention and a wide layer, a mean and a head; ``loud`` scales the residual stream."""
    net, width, tokens = Net(1, 3, 64, 64, seed=4), 64, 64
    norm = partial(norm_in_parts, net) if in_parts else net.norm
    patches = net.weights(width, 3, 8, 8, fan=3 * 64, gain=2.0)
    x = net.node("Conv", "image", patches, kernel_shape=[8, 8], strides=[8, 8])
    x = net.node("Reshape", x, net.constant(np.array([1, width, tokens])))
    x = net.node("Transpose", x, perm=[0, 2, 1])
    x = net.node("Add", x, net.weights(1, tokens, width, fan=16, gain=2.0))
    x = net.node("Mul", x, net.constant(np.array(loud, np.float32)))
    for _ in range(2):
        x = net.node("Add", x, _attention(net, norm(x, width), width, tokens))
        y = net.linear(norm(x, width), width, 4 * width)
        y = net.node("Gelu", y)
        x = net.node("Add", x, net.linear(y, 4 * width, width))
    mean = net.node("ReduceMean", norm(x, width), net.constant(np.array([1])), keepdims=0)
    return net.model(net.node("MatMul", mean, net.weights(width, 10, fan=width, gain=2.0), name="scores"))


def _attention(net: Net, x: str, width: int, tokens: int, heads: int = 4) -> str:
    def split(y: str, order: list[int]) -> str:
        shape = net.constant(np.array([1, tokens, heads, width // heads]))
        return net.node("Transpose", net.node("Reshape", y, shape), perm=order)

    query, value = (split(net.linear(x, width, width), [0, 2, 1, 3]) for _ in range(2))
    key = split(net.linear(x, width, width), [0, 2, 3, 1])
    scale = net.constant(np.array((width // heads) ** -0.5, np.float32))
    chosen = net.node("Softmax", net.node("Mul", net.node("MatMul", query, key), scale), axis=-1)
    mixed = net.node("Transpose", net.node("MatMul", chosen, value), perm=[0, 2, 1, 3])
    return net.linear(net.node("Reshape", mixed, net.constant(np.array([1, tokens, width]))), width, width)


def segmenter() -> onnx.ModelProto:
    """Down by convolutions, up by transposed ones."""
    net = Net(1, 3, 64, 64, seed=5)
    x = net.node("Relu", net.conv("image", 3, 32, 3, stride=2))
    y = net.node("Relu", net.conv(x, 32, 64, 3, stride=2))
    up = net.weights(64, 32, 2, 2, fan=64, gain=2.0)
    y = net.node("ConvTranspose", y, up, net.constant(np.zeros(32, np.float32)), kernel_shape=[2, 2], strides=[2, 2])
    y = net.node("Relu", net.conv(net.node("Concat", net.node("Relu", y), x, axis=1), 64, 32, 3))
    wide = net.weights(32, 16, 2, 2, fan=32, gain=2.0)
    net.node("ConvTranspose", y, wide, kernel_shape=[2, 2], strides=[2, 2], name="mask")
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
