"""Holds each hop to the one before it: pre-processing, torch to ONNX, ONNX to what is shipped.

A hop that fails names the first layer that diverges: in the graph's order, the first value whose own error is past the
hop's limit. Values are matched by name: torch's exporter names ONNX values after its graph's nodes, and the quantizer
keeps the names of what it quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from compiler.graph.onnxfile import Probe, float_values
from skerry.execution.backend import Tensors, backend_class
from skerry.execution.parity import Noise, agree, proof_decoder
from skerry.execution.processing import Frame, Geometry, Preprocessor
from skerry.manifest import Interface, Limits
from skerry.wire import Answer

# Rounding alone: torch and ONNX Runtime order their sums differently. Forty architectures gave 110 dB and more.
MIN_EXPORT_SQNR_DB = 60.0

Array = NDArray[np.generic]


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What one hop did to the model.

    Attributes:
        sqnr_db: of the worst output (for pre-processing: of the input) against fp32 torch, pooled over the frames.
        same, decided: answers that agree with fp32 torch's; null where a hop has no answers.
        failed: why it is out of tolerance, naming the first layer that diverges; null if it is not.
    """

    name: str
    frames: int
    sqnr_db: float
    limit_db: float
    same: int | None = None
    decided: int | None = None
    failed: str | None = None


class Reference:
    """What fp32 torch made of the report frames: a view of the file that the child's ``reference`` job wrote."""

    def __init__(self, path: Path, frames: Sequence[Frame], interface: Interface, margin: float) -> None:
        self.path, self._file = path, safe_open(path, "np")
        self._decode, self._margin = proof_decoder(interface), margin
        self.frames, self.interface = frames, interface
        self.answers = [self.decode(i, self.outputs(i)) for i in range(len(frames))]

    def input(self, index: int) -> NDArray[np.float32]:
        return np.asarray(self._file.get_tensor(f"input/{index}"))

    def outputs(self, index: int) -> Tensors:
        return {t.name: self._file.get_tensor(f"output/{t.name}/{index}") for t in self.interface.outputs}

    def decode(self, index: int, outputs: Tensors) -> list[Answer]:
        """The answers that ``outputs`` give for a frame."""
        height, width = self.frames[index].shape[:2]
        geometry = Geometry(self.interface.preprocess, (height, width), self.interface.input_size())
        return self._decode(outputs, geometry, self._margin)


def compare_preprocessing(reference: Reference, limits: Limits) -> Hop:
    """Our pre-processing, as the recipe describes it, against the user's own."""
    ours, noise = Preprocessor(reference.interface), Noise()
    entry = reference.interface.inputs[0]
    tensor = np.zeros(entry.shape, entry.dtype)
    for index, frame in enumerate(reference.frames):
        ours(frame, tensor)
        noise.add(reference.input(index), tensor)
    found, limit = noise.db(), limits.min_input_sqnr_db
    failed = None
    if found < limit:
        failed = (
            f"the recipe's pre-processing is not that of the code the net was trained with: {found:.1f} dB, at least "
            f"{limit:.0f} wanted; check color, mean, std and resize in [preprocess]"
        )
    return Hop(name="pre-processing", frames=len(reference.frames), sqnr_db=found, limit_db=limit, failed=failed)


def compare_model(
    name: str,
    reference: Reference,
    run: Callable[[Array], Tensors],
    limits: Limits,
    min_db: float,
    origin: str = "torch",
) -> Hop:
    """A model against the reference (``origin`` names it), on the reference's own inputs."""
    noise = {t.name: Noise() for t in reference.interface.outputs}
    answers = []
    for index in range(len(reference.frames)):
        found, wanted = run(reference.input(index)), reference.outputs(index)
        for output, pooled in noise.items():
            pooled.add(wanted[output], found[output])
        answers.append(reference.decode(index, found))
    agreement = agree(reference.interface, limits, reference.answers, answers)
    worst = min(pooled.db() for pooled in noise.values())
    failed = None
    if worst < min_db:
        failed = f"outputs differ from {origin}: {worst:.1f} dB, at least {min_db:.0f} wanted"
    elif agreement.decided and agreement.share < limits.min_agreement:
        share = f"{agreement.same} of {agreement.decided}"
        failed = f"answers differ from {origin}: {share} agree, {limits.min_agreement:.0%} wanted"
    return Hop(
        name=name,
        frames=len(reference.frames),
        sqnr_db=worst,
        limit_db=min_db,
        same=agreement.same,
        decided=agreement.decided,
        failed=failed,
    )


def on_backend(model: Path, name: str = "onnxrt") -> Callable[[Array], Tensors]:
    """Runs a model as a device does. Raises `BackendError` if the backend cannot."""
    backend = backend_class(name)(model, threads=1)
    (tensor,) = backend.inputs.values()

    def run(value: Array) -> Tensors:
        tensor[...] = value
        return backend.run()

    return run


def literally(model: onnx.ModelProto) -> Callable[[Array], Tensors]:
    """Runs a model node by node as it stands: for a variant whose kernels this CPU does not have."""
    probe = Probe(model, [output.name for output in model.graph.output], threads=1, literal=True)
    return lambda value: dict(probe(value))


def diverging_from_torch(model: onnx.ModelProto, layers: Path, tensor: Array) -> str:
    """The first layer of ``model`` that differs from torch's value of that name, in words."""
    wanted = load_file(layers)
    values = [name for name in float_values(model) if name in wanted]
    return _name_layer(model, _first_divergence(wanted, Probe(model, values, threads=1)(tensor), MIN_EXPORT_SQNR_DB))


def diverging_from_fp32(
    quantized: onnx.ModelProto,
    original: onnx.ModelProto,
    tensor: Array,
    min_db: float,
    exported: onnx.ModelProto | None = None,
) -> str:
    """The first layer of ``quantized`` that differs from the fp32 graph's value of that name, in words.

    ``original`` is the graph that was quantized; ``exported`` says the modules' paths, if ``original`` does not.

    Every Q/DQ pair rounds where it stands, and a value is looked at behind its pair: the quantizer folds a ReLU into
    the grid, so before the pair the two graphs differ on purpose.
    """
    there = {name for node in quantized.graph.node for name in node.output}
    values = [name for name in float_values(original) if name in there]
    stored = {n.input[0]: n.output[0] for n in quantized.graph.node if n.op_type == "QuantizeLinear"}
    restored = {n.input[0]: n.output[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    behind = [restored.get(stored.get(value, ""), value) for value in values]
    wanted = dict(Probe(original, values, threads=1)(tensor))
    found = Probe(quantized, behind, threads=1, literal=True)(tensor)
    pairs = ((value, array) for value, (_, array) in zip(values, found, strict=True))
    first = _first_divergence(wanted, pairs, min_db)
    told = exported is not None and first is not None and any(first[0] in n.output for n in exported.graph.node)
    return _name_layer(exported if exported is not None and told else original, first)


def _first_divergence(
    wanted: Mapping[str, Array], found: Iterable[tuple[str, Array]], min_db: float
) -> tuple[str, float] | None:
    for name, value in found:
        noise = Noise()
        noise.add(wanted[name], value)
        if noise.db() < min_db:
            return name, noise.db()
    return None


def _name_layer(model: onnx.ModelProto, first: tuple[str, float] | None) -> str:
    """The module path, kind and error of the node that computes a value."""
    if first is None:
        return "no single layer is past the limit, the error adds up over the depth"
    name, db = first
    node = next(node for node in model.graph.node if name in node.output)
    module = module_path(node, name)
    return f"the first layer that diverges is {module} ({node.op_type}, {db:.1f} dB)"


def module_path(node: onnx.NodeProto, otherwise: str) -> str:
    """The path of the module in the user's code that a node was exported from; ``otherwise`` where none is noted."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    modules = [
        scope.strip(" '\"") for scope in scopes.strip("[]").split(",")
    ]  # "['', 'features', 'features.0', 'conv2d']"
    return modules[-2] if len(modules) > 2 else otherwise
