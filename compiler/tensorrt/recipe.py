"""How an engine is built, as a value: what a bundle carries for a device, and what a build is asked and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import onnx

from compiler.targets.target import Build

BUILD, ENGINE = "build.json", "model.engine"  # beside a variant's model.onnx
Dims = list[Annotated[int, msgspec.Meta(gt=0)]]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The shapes for which an engine is tuned, where an input's is dynamic."""

    input: str
    least: Dims
    usual: Dims
    most: Dims


class BuildRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a device needs to build the engine that was meant.

    Attributes:
        requested: precision by node; what the engine's inspector says is held to it.
    """

    format: Literal["skerry.tensorrt-build/1"] = "skerry.tensorrt-build/1"
    network: Literal["strongly typed"] = "strongly typed"
    build: Build
    profiles: list[Profile] = []
    requested: dict[str, str] = {}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One build, as the child process is asked for it.

    Attributes:
        sms: compute capabilities to build for ahead of time ("8.6"): TensorRT for RTX; empty means this GPU.
        timing_cache: read if it is there, and written; only where a GPU measures.
        inspect: deserialize the engine and write what its inspector says there (JSON); needs the GPU.
    """

    backend: Literal["tensorrt", "tensorrt-rtx"]
    model: str
    out: str
    recipe: BuildRecipe
    sms: list[str] = []
    timing_cache: str | None = None
    inspect: str | None = None


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. ``layers`` counts the parsed network's, not the engine's."""

    version: str
    layers: int
    bytes: int
    warnings: list[str] = []


def batches(model: onnx.ModelProto, least: int, most: int) -> list[Profile]:
    """A profile for each input whose first dimension is open: from ``least`` to ``most``, tuned for ``least``."""
    found = []
    for entry in model.graph.input:
        dims = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        if dims and not dims[0] and all(dims[1:]):
            rest = dims[1:]
            found.append(Profile(input=entry.name, least=[least, *rest], usual=[least, *rest], most=[most, *rest]))
    return found


def engine_key(
    recipe: BuildRecipe,
    model_digest: str,
    *,
    backend: str,
    version: str,
    sm: str,
    system: str,
    options: Mapping[str, str],
) -> str:
    """The name of an engine in a cache: everything that ties a plan to where it was built.

    A plan fits one full TensorRT version, one GPU architecture and one operating system; NVIDIA offers no check before
    it is deserialized (TensorRT, engine compatibility), so the name is the check.

    Args:
        system: "l4t-36.4.3", or the operating system and its machine.
        options: what else decides, such as the power mode under which a Jetson timed its kernels.
    """
    parts = [recipe, model_digest, backend, version, sm, system, dict(options)]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()
