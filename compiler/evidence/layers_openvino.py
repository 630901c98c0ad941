"""The precision that OpenVINO computes each layer in, as its runtime model tells it.

A kernel names the nodes that it stands for, with what it did to them behind a slash: "node_linear/WithoutBiases".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import onnx

_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16", "bf16": "bf16"}


def real_on_openvino(path: Path) -> dict[str, str]:
    """The precision of the kernel that computes each node, by the node's first output. What is nowhere is left out."""
    from skerry.execution.openvino import OpenvinoBackend  # noqa: PLC0415 - its library is an extra

    backend = OpenvinoBackend(path, threads=1)
    try:
        return by_output(onnx.load(path), backend.kernels())
    finally:
        backend.close()


def by_output(model: onnx.ModelProto, kernels: Iterable[tuple[list[str], str]]) -> dict[str, str]:
    """Brings kernels (the names that each stands for, its precision) to the nodes of ``model``."""
    known = {name for node in model.graph.node for name in (node.name, *node.output) if name}
    found: dict[str, str] = {}
    for names, precision in kernels:
        if precision in _PRECISIONS:
            for name in names:
                found.setdefault(_core(name, known), _PRECISIONS[precision])
    nodes = {node.output[0]: (node.name, *node.output) for node in model.graph.node}
    return {value: found[n] for value, names in nodes.items() if (n := next((n for n in names if n in found), None))}


def _core(name: str, known: Collection[str]) -> str:
    """The node's or value's own name."""
    core = name
    while core not in known and "/" in core:
        core = core.rpartition("/")[0]
    return core if core in known else name
