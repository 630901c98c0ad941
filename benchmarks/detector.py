"""A detector of YOLO's make as ONNX, with random weights: for what depends on shapes alone.

Nano size: 2.6 million parameters, C2f blocks, three scales, SiLU. At 640x640 it computes 208 values, 212 MiB together.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTHS = (16, 32, 64, 128, 256)


class _Net:
    """Grows by a layer a call; values are (name, channels)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"node{len(self.nodes)}", **attributes))
        return names

    def constant(self, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(value, f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def conv(self, value: str, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> str:
        """Convolution and SiLU."""
        spread = (2.0 / (inputs * size * size)) ** 0.5
        weight = self._random.normal(0, spread, (outputs, inputs, size, size)).astype(np.float32)
        tables = [self.constant(weight), self.constant(np.zeros(outputs, np.float32))]
        (out,) = self.node("Conv", value, *tables, pads=[size // 2] * 4, strides=[stride] * 2)
        return self.node("Mul", out, *self.node("Sigmoid", out))[0]

    def c2f(self, value: str, inputs: int, outputs: int, depth: int, *, add: bool) -> str:
        half = outputs // 2
        parts = self.node("Split", self.conv(value, inputs, outputs, 1), outputs=2, axis=1, num_outputs=2)
        for _ in range(depth):
            inner = self.conv(self.conv(parts[-1], half, half), half, half)
            parts += self.node("Add", parts[-1], inner) if add else [inner]
        return self.conv(self.node("Concat", *parts, axis=1)[0], half * len(parts), outputs, 1)

    def twice(self, value: str) -> str:
        scales = self.constant(np.float32([1, 1, 2, 2]))
        return self.node("Resize", value, "", scales, mode="nearest")[0]


def detector(size: int = 640) -> onnx.ModelProto:
    """Image [1, 3, size, size] to 64 + 80 numbers for each of the cells of three scales."""
    net = _Net()
    value, channels, levels = net.conv("image", 3, _WIDTHS[0], stride=2), _WIDTHS[0], []
    for width, depth in zip(_WIDTHS[1:], (1, 2, 2, 1), strict=True):
        value = net.c2f(net.conv(value, channels, width, stride=2), width, width, depth, add=True)
        channels = width
        levels.append(value)
    _, fine, middle, coarse = levels
    middle = net.c2f(net.node("Concat", net.twice(coarse), middle, axis=1)[0], 384, 128, 1, add=False)
    fine = net.c2f(net.node("Concat", net.twice(middle), fine, axis=1)[0], 192, 64, 1, add=False)
    down = net.node("Concat", net.conv(fine, 64, 64, stride=2), middle, axis=1)[0]
    middle = net.c2f(down, 192, 128, 1, add=False)
    down = net.node("Concat", net.conv(middle, 128, 128, stride=2), coarse, axis=1)[0]
    coarse = net.c2f(down, 384, 256, 1, add=False)
    rows = []
    for value, channels in ((fine, 64), (middle, 128), (coarse, 256)):
        heads = [net.conv(net.conv(value, channels, 64), 64, outputs, 1) for outputs in (64, 80)]
        (joined,) = net.node("Concat", *heads, axis=1)
        rows += net.node("Reshape", joined, net.constant(np.array([1, 144, -1])))
    (out,) = net.node("Concat", *rows, axis=2)
    cells = sum((size // stride) ** 2 for stride in (8, 16, 32))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])
    output = helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, 144, cells])
    graph = helper.make_graph(net.nodes, "detector", [image], [output], net.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
