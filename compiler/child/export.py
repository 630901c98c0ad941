"""A torch module as an ONNX program: the exporter's settings, what it breaks, and its reasons in one line."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from skerry.execution.onnxrt import BATCH

from .attention import PlainAttention
from .serving import one_line
from .usercode import UserError

OPSET = 20  # the newest that ONNX Runtime 1.23 (Python 3.10's last) and TensorRT 10.3 both read


def to_onnx(
    model: torch.nn.Module, shape: Sequence[int], input_name: str, outputs: Sequence[str], batch: Sequence[int] | None
) -> torch.onnx.ONNXProgram:
    """Exports ``model``.

    Args:
        shape: the input's, at batch 1.
        batch: the least and the most images at once; null: as ``shape`` says.

    Raises:
        UserError: torch cannot export it.
    """
    # Torch takes a size of one for a constant, so what is to vary is shown as two.
    example = torch.zeros([min(2, batch[1]), *shape[1:]] if batch else list(shape))
    varies = ({0: torch.export.Dim(BATCH, min=batch[0], max=batch[1])},) if batch else None
    with warnings.catch_warnings(), PlainAttention():
        warnings.simplefilter("ignore")
        try:
            exported = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=varies,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(outputs),
                verbose=False,
            )
        except Exception as exc:
            asked = f" for a batch of {batch[0]} to {batch[1]}" if batch else ""
            raise UserError(f"torch cannot export the model to ONNX{asked}: {export_reason(exc)}") from exc
    if exported is None:
        raise RuntimeError("torch's exporter gave nothing back")
    _list_constants(exported.model.graph)
    return exported


def _list_constants(graph: Any) -> None:
    """Lists constants that nodes read and the graph does not hold.

    Where two clamps read one value, onnxscript 0.7's fusion to Clip calls both bounds by the same name and keeps the
    last; the others' nodes still hold their own numbers.
    """
    for value in dict.fromkeys(itertools.chain.from_iterable(node.inputs for node in graph.all_nodes())):
        if value is None or value.const_value is None or value.producer() or value.is_initializer():
            continue
        names = itertools.chain([value.name], (f"{value.name}_{n}" for n in itertools.count(1)))
        value.name = next(name for name in names if name not in graph.initializers)
        graph.register_initializer(value)


def export_reason(exc: BaseException) -> str:
    """What torch's exporter stumbled over, without its pages of guards: the deepest cause."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = str(exc)
    for mark in ("No ONNX function found for", "No decompositions registered for", "Unsupported"):
        if mark in text:
            return text[text.index(mark) :].splitlines()[0][:300]
    return f"{type(exc).__name__}: {one_line(exc)}"
