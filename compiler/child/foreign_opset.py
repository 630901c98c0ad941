"""Bringing a graph to the one opset that everything downstream reads.

Older graphs go through onnx's version converter, newer ones are held to the older definitions: nearly all that opsets
21 and up changed are lists of types. Neither is believed: whoever calls this compares the outcome with the original.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto, defs, helper, numpy_helper, version_converter

from skerry.errors import CompileError

from .foreign_read import opset, reason, title

TARGET = 20  # the newest that ONNX Runtime 1.23 (Python 3.10's last) and TensorRT 10.3 both read
IR_VERSION = 10


def to_target(model: ModelProto, name: str) -> ModelProto:
    """``model`` in opset `TARGET`. It has no subgraphs, and its initializers are no inputs.

    Raises:
        CompileError: an operator has no equal there; the message names it.
    """
    version = opset(model)
    model.ir_version = IR_VERSION
    if version == TARGET:
        return _only_ours(model)
    if version > TARGET:
        return _lowered(model, version, name)
    try:
        raised = version_converter.convert_version(_only_ours(model), TARGET)
    except Exception as exc:
        culprit = _culprit(model, version)
        raise CompileError(
            f"{name} is of opset {version}, and {culprit} cannot be raised to {TARGET}: {reason(exc)}; export it with "
            f"opset {TARGET}"
        ) from exc
    if version < 11:
        _keep_old_sampling(raised)
    raised.ir_version = IR_VERSION
    return raised


def _only_ours(model: ModelProto) -> ModelProto:
    version = opset(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    for node in model.graph.node:
        node.domain = ""
    return model


def _lowered(model: ModelProto, version: int, name: str) -> ModelProto:
    for node in model.graph.node:
        known = _schema(node.op_type)
        if known is None:
            raise CompileError(
                f"{name} is of opset {version}, and {title(node)} is not in opset {TARGET}, the newest that all "
                f"targets read; export it with opset {TARGET}"
            )
        for attribute in [a for a in node.attribute if a.name not in known.attributes]:
            default = defs.get_schema(node.op_type, version, "").attributes[attribute.name].default_value
            if default.SerializeToString() != attribute.SerializeToString() and not _is_zero(attribute):
                raise CompileError(
                    f"{name} is of opset {version}, and {attribute.name} of {title(node)} is not in opset {TARGET}; "
                    f"export it with opset {TARGET}"
                )
            node.attribute.remove(attribute)
    _only_ours(model).opset_import[0].version = TARGET
    return model


def _schema(operator: str) -> defs.OpSchema | None:
    """What the target's opset says of an operator, if it has it and means it."""
    try:
        found = defs.get_schema(operator, TARGET, "")
    except defs.SchemaError:
        return None
    return None if found.deprecated else found


def _is_zero(attribute: onnx.AttributeProto) -> bool:
    return attribute.type == onnx.AttributeProto.INT and attribute.i == 0


def _keep_old_sampling(model: ModelProto) -> None:
    """Resize sampled from the corner until opset 11; the converter leaves it to the new default, half a pixel off."""
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Resize":
            continue
        scales = constants.get(node.input[2]) if len(node.input) > 2 else None
        shrinks = scales is not None and bool((numpy_helper.to_array(scales) < 1).any())
        old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
        for attribute in [a for a in node.attribute if a.name in old]:
            node.attribute.remove(attribute)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in old.items())


def _culprit(model: ModelProto, version: int) -> str:
    """The first operator that the converter stumbles over when it is given that one alone."""
    for node in model.graph.node:
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.input if n]
        ends = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
        graph = helper.make_graph([node], "one", values, ends)
        one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=IR_VERSION)
        try:
            version_converter.convert_version(one, TARGET)
        except Exception:  # noqa: BLE001 - whatever it is, this is where
            return title(node)
    return "one of its operators"
