"""How wide the steps of a layer's int8 weights are, one width per output channel: as narrow as the kernel's sums allow.

127 steps reach the largest weight, if products are added in 32 bits. On x86-64 without VNNI they are not: vpmaddubsw
adds the products of two neighbours in 16 bits and saturates. The usual cure is 64 steps for every weight
(onnxruntime docs, quantization.md, "reduce_range"). What the sum asks for is less: 255 times two neighbours together
must fit, so they may have 128 steps *between them*, however they share them. And a depthwise kernel multiplies each
channel by itself, in 32 bits. Both were seen on an emulated Haswell (docs/decisions/0018).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.graph.view import attribute

MOST = 127  # steps of one weight
_BETWEEN_TWO = 128 * (1 - 1e-6)  # 255 * 128 < 2**15; less by what a division in float32 may round up
Table = NDArray[np.float32]


def step_widths(rows: Table, *, in_16_bits: bool) -> NDArray[np.float64]:
    """The width of a step for each of ``rows`` [channels, products], products in the order in which they are added."""
    sizes = np.abs(rows).astype(np.float64)
    widths = sizes.max(axis=1) / MOST
    if in_16_bits and sizes.shape[1] > 1:
        widths = np.maximum(widths, (sizes[:, 1:] + sizes[:, :-1]).max(axis=1) / _BETWEEN_TWO)
    return np.asarray(widths)


def as_added(node: onnx.NodeProto, table: Table, axis: int) -> Table:
    """The weights of ``node`` as [channels, products]: a convolution adds pixel by pixel, of each all channels."""
    table = np.moveaxis(table, axis, 0)
    table = np.moveaxis(table, 1, -1) if node.op_type == "Conv" else table
    return table.reshape(len(table), -1)


def adds_in_16_bits(node: onnx.NodeProto, table: Table) -> bool:
    """Whether the kernel without VNNI does: all but the depthwise one, which takes one channel in and gives one out."""
    return node.op_type != "Conv" or table.shape[1] > 1 or attribute(node, "group", 1) != table.shape[0]
