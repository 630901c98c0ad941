"""From a calibrated fp32 graph to what a TensorRT variant ships.

A Jetson gets ONNX and a recipe, and builds on the device: NVIDIA offers no other way. For an RTX card the engine is
built here, without a GPU, and belongs to one release of TensorRT for RTX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from compiler.graph import layernorm
from compiler.targets.target import Build, VariantPlan
from compiler.tensorrt import bias, half, layout, pairs, placement, preflight
from compiler.tensorrt.build import build
from compiler.tensorrt.islands import Island, Range
from compiler.tensorrt.recipe import BUILD, ENGINE, BuildRecipe, Built, Request, batches
from skerry.disk import Disk
from skerry.manifest import Requires, numbers


@dataclass(frozen=True)
class Calibrated:
    """An fp32 graph, prepared, and what calibration knows of it.

    Attributes:
        ranges: least and greatest of each float value of this very graph.
        tensors: some calibration inputs, to correct biases with; none leaves them.
        keep_float: names of nodes that do not become int8.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    tensors: Sequence[NDArray[np.float32]] = ()
    keep_float: Collection[str] = ()


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a graph, for the evidence.

    Attributes:
        fused: layer normalizations that were put together again.
        islands: what stays fp32, and why.
        left: weighted layers that did not become int8, and why.
        requested: precision by weighted node.
    """

    fused: list[str] = []
    islands: list[Island] = []
    left: dict[str, str] = {}
    requested: dict[str, str] = {}


def write(source: Calibrated, precision: str, progress: Callable[[str], None]) -> tuple[onnx.ModelProto, Written]:
    """The graph in ``precision`` (fp32, fp16, int8), and what was done to it. It is the same for every target."""
    if precision == "fp32":
        return source.model, Written(requested=layout.requested(source.model))
    whole, fused = layernorm.fuse(source.model)
    left: dict[str, str] = {}
    typed = whole
    if precision == "int8":
        decided = placement.decide(whole, source.ranges, keep_float=source.keep_float)
        left, typed = decided.left, pairs.write(whole, decided, half=True)
        if source.tensors:
            bias.correct(typed, whole, source.tensors, 1, progress)
    made, islands = half.to_half(typed, source.ranges)
    return made, Written(fused=fused, islands=islands, left=left, requested=layout.requested(made))


def lower(
    written: onnx.ModelProto,
    folder: Path,
    plan: VariantPlan,
    requires: Requires,
    progress: Callable[[str], None],
    disk: Disk,
    *,
    batch: tuple[int, int] = (1, 1),
) -> Built | None:
    """Fills ``folder`` with ``model.onnx``, ``build.json`` and, for TensorRT for RTX, ``model.engine``.

    Args:
        written: what `write` made for the plan's precision, with whatever was drawn around it since.
        batch: the least and the most, where the graph's is open.

    Returns:
        The engine's facts, where one was built here.

    Raises:
        CompileError: TensorRT would refuse it or build something else, or its process died.
    """
    preflight.check_model(written, plan, requires)
    disk.replace(folder / "model.onnx", written.SerializeToString(deterministic=True))
    recipe = BuildRecipe(
        build=plan.build or Build(), profiles=batches(written, *batch), requested=layout.requested(written)
    )
    disk.replace(folder / BUILD, msgspec.json.format(msgspec.json.encode(recipe)))
    if plan.backend != "tensorrt-rtx":
        return None
    request = Request(
        backend=plan.backend,
        model=str(folder / "model.onnx"),
        out=str(folder / ENGINE),
        recipe=recipe,
        sms=list(dict.fromkeys(a.sm for a in requires.accelerators or [])),
    )
    return build(request, progress)


def pinned(requires: Requires, built: Mapping[str, Any] | Built) -> Requires:
    """What a device must have for an engine that was built here: the very release that built it."""
    version = built.version if isinstance(built, Built) else str(built["version"])
    *front, last = numbers(version)
    below = ".".join(map(str, [*front, last + 1]))
    exact = [msgspec.structs.replace(a, at_least=version, below=below) for a in requires.accelerators or []]
    return msgspec.structs.replace(requires, accelerators=exact)
