"""One net of ours beside what the peers make of it: the same fp32 file, the same calibration pictures, one process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import venvs
from benchmarks.release import compiled, unpack_into
from benchmarks.results import OUT
from skerry.execution.device import this_device
from skerry.execution.frames import read_image
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface, Manifest

FOLDER = OUT / "side"
TARGETS = ("x86-64", "x86-64-vnni")


def has_vnni() -> bool:
    """Whether this CPU's int8 dot product does not saturate."""
    return "vnni" in this_device().cpu


@dataclass(frozen=True)
class Compiled:
    """A net's bundle, taken apart.

    Attributes:
        refused: what the compiler said when it was not forced; null if it packaged the net of its own accord.
    """

    name: str
    root: Path
    manifest: Manifest
    refused: str | None

    def model(self, variant: str) -> Path:
        return self.root / self.manifest.variant(variant).model

    def runs(self, variant: str) -> str:
        """The variant with its own runtime, as benchmarks/peers.py wants it named."""
        on_openvino = self.manifest.variant(variant).backend == "openvino"
        return f"{self.model(variant)}{'@f32' if on_openvino else ''}"

    @property
    def quantized(self) -> list[str]:
        """The INT8 variants, if the compiler kept any."""
        return [v.id for v in self.manifest.variants if v.precision == "int8"]


def compile_net(
    name: str,
    subject: Path,
    pictures: Path,
    weights: Path | None,
    targets: Sequence[str] = TARGETS,
    more: Sequence[str] = (),
    *,
    keep_slower: bool = False,
) -> Compiled:
    """Compiles a net; a refusal is kept, and forced past, so that it can be measured what was refused.

    Args:
        more: options; without any the net is quantized untuned.
    """
    out = (FOLDER / f"{name}.skb").absolute()
    arguments = [*more, "--calib", str(pictures), "--work", str((OUT / "work").absolute())]
    arguments += ["--weights", str(weights)] if weights else []
    arguments += ["--keep-slower"] if keep_slower else []
    for target in targets:
        arguments += ["--target", target]
    refused = compiled(subject, arguments, out)
    if refused is not None and (worse := compiled(subject, [*arguments, "--force"], out)):
        raise SystemExit(f"{name}: {worse}")
    root = FOLDER.absolute() / name
    return Compiled(name, root, unpack_into(root, out), refused)


def tensors(interface: Interface, files: Sequence[Path], out: Path) -> Path:
    """The input tensors of photos, pre-processed as a device does, in one file [N, C, H, W]."""
    preprocess, shape = Preprocessor(interface), interface.inputs[0].shape
    found = np.zeros((len(files), *shape), np.float32)
    for tensor, file in zip(found, files, strict=True):
        preprocess(read_image(file), tensor)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, found[:, 0])
    return out


def peer(command: str, request: Mapping[str, Any]) -> None:
    """Runs a command of benchmarks/peers.py in its own environment, on one thread."""
    file = FOLDER / f"{Path(request['out']).stem}-{command}.json"
    file.write_text(json.dumps(request))
    # OpenVINO and NNCF report to their makers, but not from where CI is set.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CI": "true"}
    subprocess.run(
        [str(venvs.python("peers")), "-m", "benchmarks.peers", command, str(file)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def variants(net: Compiled, inputs: Path, *, transformer: bool, vnni: bool) -> dict[str, str]:
    """Every peer's variants of the net's fp32 file, made if they are not there."""
    out = FOLDER.absolute() / f"{net.name}-peers"
    request = {"model": str(net.model("fp32")), "inputs": str(inputs), "out": str(out)}
    peer("quantize", {**request, "transformer": transformer, "vnni": vnni})
    return {file.stem: str(file) for file in sorted([*out.glob("ort-*.onnx"), *out.glob("nncf-*.xml")])}
