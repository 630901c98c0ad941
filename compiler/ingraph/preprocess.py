"""From uint8 frames of one size to the net's input, as `skerry.execution.processing.Preprocessor` does it.

The resize is the runtime's own: the same weights, cut into the same blocks, rounded to 8 bits at the same places.
ONNX's Resize with antialias would be one node instead of fifty. On noise it is off by up to 14 grey levels of 255 (its
window is another one), it is no faster on ONNX Runtime, and TensorRT has no antialias. What is left between this graph
and the runtime is the order in which a product's terms are added, and hardly a value in a frame can tell.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from compiler.ingraph.drawing import Drawing
from skerry.execution.processing import LUMA, Geometry
from skerry.execution.resize import HALF, Float, blocks, taps
from skerry.manifest import Interface, Preprocess

_ROWS, _COLUMNS = 2, 3  # the axes of planes [N, 3, height, width]


def draw_input(
    d: Drawing, frames: str, interface: Interface, size: tuple[int, int], dtype: int, *, tensorrt: bool
) -> str:
    """Draws the path from ``frames`` to the input tensor; returns the tensor's name.

    Args:
        frames: uint8 [N, height, width, 3], RGB.
        size: height and width of the frames.
        dtype: of the net's input, by ONNX's number.
        tensorrt: as TensorRT wants it: no operator but a cast sees 8-bit integers, and products are convolutions, for
            on SM 7.5 TensorRT for RTX has no fp32 matrix product. Else as much as can be is done before the cast makes
            four bytes of one.
    """
    spec, target = interface.preprocess, interface.input_size()
    geometry = Geometry(spec, size, target)
    pixels = d.add("Cast", frames, to=TensorProto.FLOAT) if tensorrt else frames
    planes = d.add("Transpose", pixels, perm=[0, 3, 1, 2])
    planes = _coloured(d, _resized(d, planes, spec, geometry, convolve=tensorrt), spec)
    planes = _padded(d, planes, spec, geometry)
    planes = d.add("Round", planes) if dtype == TensorProto.UINT8 else _normalized(d, planes, spec)
    if spec.layout == "nhwc":
        planes = d.add("Transpose", planes, perm=[0, 2, 3, 1])
    return planes if dtype == TensorProto.FLOAT else d.add("Cast", planes, to=dtype)


def _resized(d: Drawing, planes: str, spec: Preprocess, geometry: Geometry, *, convolve: bool) -> str:
    """Columns first, then rows; rounded in between only where Pillow does."""
    top, left, height, width = geometry.inside()
    places = slice(top, top + height), slice(left, left + width)
    rows, columns = (
        taps(source, scaled, spec.interpolation, spec.antialias, place)
        for source, scaled, place in zip(geometry.source, geometry.scaled, places, strict=True)
    )
    for matrix, axis in ((rows, _ROWS), (columns, _COLUMNS)):
        planes = _picked(d, planes, matrix, axis) if _picks(matrix) else _used(d, planes, matrix, axis)
    planes, product = d.add("Cast", planes, to=TensorProto.FLOAT), _convolution if convolve else _product
    if not _picks(columns):
        planes = product(d, planes, _dense(columns), _COLUMNS)
        planes = _rounded(d, planes) if spec.antialias or _picks(rows) else planes
    if not _picks(rows):
        planes = _rounded(d, product(d, planes, _dense(rows), _ROWS))
    return planes


def _picks(matrix: Float) -> bool:
    """Whether every target pixel is one source pixel: nearest, or a size that stays."""
    return bool((matrix.max(axis=1) == 1.0).all() and (np.count_nonzero(matrix, axis=1) == 1).all())


def _picked(d: Drawing, planes: str, matrix: Float, axis: int) -> str:
    chosen = matrix.argmax(axis=1)
    if (np.diff(chosen) == 1).all():
        first, past = int(chosen[0]), int(chosen[-1]) + 1
        return planes if (first, past) == (0, matrix.shape[1]) else d.cut(planes, axis, first, past)
    return d.add("Gather", planes, d.whole(*chosen.tolist()), axis=axis)


def _window(matrix: Float) -> tuple[int, int]:
    """The first source pixel that some target pixel looks at, and the one past the last."""
    used = np.flatnonzero(matrix.any(axis=0))
    return int(used[0]), int(used[-1]) + 1


def _dense(matrix: Float) -> Float:
    """The columns of the window."""
    first, past = _window(matrix)
    return matrix[:, first:past]


def _used(d: Drawing, planes: str, matrix: Float, axis: int) -> str:
    first, past = _window(matrix)
    return planes if (first, past) == (0, matrix.shape[1]) else d.cut(planes, axis, first, past)


def _product(d: Drawing, planes: str, matrix: Float, axis: int) -> str:
    """One dense product per block of target pixels: a tenth of the multiplications that the whole matrix asks for."""
    parts = []
    for block in blocks(matrix):
        source = d.cut(planes, axis, block.source.start, block.source.stop)
        if axis == _COLUMNS:
            parts.append(d.add("MatMul", source, d.constant(block.weights.T)))
        else:
            parts.append(d.add("MatMul", d.constant(block.weights), source))
    return d.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _convolution(d: Drawing, planes: str, matrix: Float, axis: int) -> str:
    """The same as convolutions of one pixel, with the axis in the place of the channels."""
    there = [0, axis, 1, 5 - axis]  # of the two axes of a plane, the other one comes last
    planes, parts = d.add("Transpose", planes, perm=there), []
    for block in blocks(matrix):
        source = d.cut(planes, 1, block.source.start, block.source.stop)
        parts.append(d.add("Conv", source, d.constant(block.weights[:, :, None, None])))
    made = d.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    return d.add("Transpose", made, perm=np.argsort(there).tolist())


def _rounded(d: Drawing, planes: str) -> str:
    """Halves up."""
    return d.add("Floor", d.add("Add", planes, d.constant(HALF)))


def _coloured(d: Drawing, planes: str, spec: Preprocess) -> str:
    if spec.color == "bgr":
        return d.add("Gather", planes, d.whole(2, 1, 0), axis=1)
    if spec.color == "gray":
        weighted = d.add("Mul", planes, d.constant(LUMA.reshape(1, 3, 1, 1)))
        return d.add("ReduceSum", weighted, d.whole(1), keepdims=1)
    return planes


def _padded(d: Drawing, planes: str, spec: Preprocess, geometry: Geometry) -> str:
    _, _, height, width = geometry.inside()
    if (height, width) == geometry.target:
        return planes
    top, left = max(0, geometry.top), max(0, geometry.left)
    bottom, right = geometry.target[0] - height - top, geometry.target[1] - width - left
    pads = d.whole(0, 0, top, left, 0, 0, bottom, right)
    return d.add("Pad", planes, pads, d.constant(float(spec.pad_value)))


def _normalized(d: Drawing, planes: str, spec: Preprocess) -> str:
    """``pixel * gain + offset``, in the runtime's own arithmetic."""
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    gain, offset = _per_channel(spec.scale / std), _per_channel(-mean / std)
    if (gain != 1.0).any():
        planes = d.add("Mul", planes, d.constant(gain))
    return d.add("Add", planes, d.constant(offset)) if offset.any() else planes


def _per_channel(values: Float) -> Float:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)
