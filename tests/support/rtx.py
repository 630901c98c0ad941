"""TensorRT for RTX in tests: parses and builds ahead of time, without a GPU."""

from __future__ import annotations

import functools
from pathlib import Path

import needs
import onnx
import typed_nets as nets

from compiler.quantization import calibrate
from compiler.targets.target import Build
from compiler.tensorrt import api, builder
from compiler.tensorrt.recipe import BuildRecipe, Built, Request
from skerry.disk import Disk
from skerry.errors import CompileError

SMS = ["7.5", "8.0", "8.6", "8.9", "12.0"]


def said(_text: str) -> None:
    """Progress that nobody reads."""


def module() -> object:
    try:
        return api.load("tensorrt-rtx")
    except CompileError:
        needs.missing("TensorRT for RTX is not here: pip install 'skerry[tensorrt-rtx]' (x86-64 only)")


def request(folder: Path, **changes: object) -> Request:
    recipe = changes.pop("recipe", BuildRecipe(build=Build(workspace_mib=256)))
    named = {"backend": "tensorrt-rtx", "model": str(folder / "model.onnx"), "out": str(folder / "model.engine")}
    return Request(**{**named, "recipe": recipe, "sms": ["8.6"], **changes})


def build(model: onnx.ModelProto, folder: Path, **changes: object) -> Built:
    """Builds in this very process: quicker than a child, and what would kill it is told apart in other tests."""
    trt = module()
    onnx.save(model, folder / "model.onnx")
    return builder.build(trt, request(folder, **changes), said, Disk())


@functools.cache
def calibrated(name: str) -> tuple[onnx.ModelProto, dict[str, tuple[float, float]]]:
    """A net of `nets` and its ranges."""
    model = nets.NETS[name]()
    return model, calibrate.ranges(model, nets.frames(8), calibrate.DEFAULT, 1, said)
