"""Nodes and constants in the making."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper

PREFIX = "ingraph/"  # of every name that is drawn, so that it meets no name of the net's


class Drawing:
    """A piece of a graph, in the order of its data flow. Equal constants are kept once."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        return list(self._constants.values())

    def constant(self, value: ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """The name of a constant."""
        array: NDArray[np.generic] = np.ascontiguousarray(np.asarray(value, dtype))
        array = array.reshape(np.shape(value))  # numpy makes a scalar contiguous as a vector
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, f"{self._prefix}constant_{len(self._constants)}")
        return self._constants[key].name

    def whole(self, *values: int) -> str:
        """A constant vector of int64: axes, shapes, places."""
        return self.constant(values, np.int64)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Draws a node of one output; returns the output's name."""
        return self.several(op, inputs, 1, **attributes)[0]

    def several(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Draws a node of ``count`` outputs."""
        name = f"{self._prefix}{op.lower()}_{len(self.nodes)}"
        outputs = [name if count == 1 else f"{name}:{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs

    def cut(self, value: str, axis: int, start: int, stop: int) -> str:
        """``value[start:stop]`` along an axis."""
        return self.add("Slice", value, self.whole(start), self.whole(stop), self.whole(axis))

    def name(self, value: str, name: str) -> str:
        """Gives ``value`` a name of the net's or of the interface's."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{self._prefix}named_{name}"))
        return name
