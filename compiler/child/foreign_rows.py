"""Outputs whose number of rows depends on the image, as detectors with suppression in the graph have them.

A release's outputs have fixed sizes. So such an output is filled up with zeros to a fixed number of rows, and cut
there: a row of zeros has a score of zero, which is under every threshold.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, helper, numpy_helper

from skerry.errors import CompileError

from .foreign_tidy import rename_value

# What has as many rows as it finds. Everything else that hangs on a size alone was folded before.
_COUNTING = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}

Array = NDArray[np.generic]


def fix_rows(model: ModelProto, rows: int | None, name: str) -> dict[str, int]:
    """Gives every output that varies ``rows`` rows, in place.

    Returns:
        The axis along which each such output is filled up.

    Raises:
        CompileError: an output varies and nobody said how many rows it is to have, or along more than one axis.
    """
    inferred = {v.name: v.type.tensor_type for v in onnx.shape_inference.infer_shapes(model).graph.output}
    counted = _counted(model.graph)
    found: dict[str, int] = {}
    for output in [value.name for value in model.graph.output if value.name in counted]:
        dims = inferred[output].shape.dim
        axes = [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if inferred[output].HasField("shape") and not axes:
            continue
        if rows is None or len(axes) != 1:
            raise CompileError(
                f"{name}: the size of output {output!r} depends on what is in the image; that is possible for a "
                'detector (a recipe with postprocess.kind = "detection") whose outputs vary along one axis'
            )
        _fill_up(model.graph, output, axes[0], len(dims), rows)
        found[output] = axes[0]
    return found


def filled(value: Array, axis: int, rows: int) -> Array:
    """The same in numpy: what the original's output is compared as."""
    part = np.take(value, range(min(rows, value.shape[axis])), axis)
    padding = [(0, rows - part.shape[axis] if index == axis else 0) for index in range(value.ndim)]
    return np.pad(part, padding)


def _counted(graph: GraphProto) -> set[str]:
    """The values that hang on a count."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in _COUNTING or found.intersection(node.input):
            found.update(node.output)
    return found


def _fill_up(graph: GraphProto, output: str, axis: int, rank: int, rows: int) -> None:
    inner, padded = f"{output}.counted", f"{output}.padded"
    rename_value(graph, output, inner)
    constants = {
        f"{output}.pads": [rows if index == rank + axis else 0 for index in range(2 * rank)],
        f"{output}.from": [0],
        f"{output}.to": [rows],
        f"{output}.axis": [axis],
    }
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in constants.items())
    pads, *ends = constants
    graph.node.append(helper.make_node("Pad", [inner, pads], [padded]))
    graph.node.append(helper.make_node("Slice", [padded, *ends], [output]))
