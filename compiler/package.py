"""Puts a release together: variants, proof set, evidence; signs it; packs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import save

from compiler.candidate import file_digest, file_digests
from compiler.evaluation.compare import Reference
from compiler.graph import onnxfile
from compiler.targets.target import VariantPlan
from compiler.tensorrt.recipe import BUILD, ENGINE
from skerry import __version__, signing
from skerry.bundle import pack
from skerry.disk import Disk
from skerry.errors import CompileError
from skerry.execution.parity import is_decided
from skerry.manifest import Detection, File, InGraph, Interface, Limits, Manifest, Proof, Requires, Variant, Weight
from skerry.wire import Answer

_PROOF_INPUTS = 4  # proof frames whose input tensor goes along: enough to tell one pre-processing from another
_MEDIA_TYPES = {
    ".onnx": "application/onnx",
    ".bin": "application/octet-stream",
    ".safetensors": "application/vnd.safetensors",
    ".json": "application/json",
}


class ReleaseFolder:
    """The directory of a release while it is being filled."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self._disk = root, disk
        disk.make_dirs(root)

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        self._disk.make_dirs(target.parent)
        self._disk.replace(target, data)

    def add_variant(self, plan: VariantPlan, requires: Requires, model: Path, graph: InGraph | None = None) -> Variant:
        """Writes a model in the shipped layout: its engine if one lies beside it, and how that is built.

        Args:
            graph: what the model does besides the net.
        """
        folder = f"variants/{plan.id}"
        self._disk.make_dirs(self.root / folder)
        weights: list[Weight] = []
        if model.with_name(ENGINE).is_file():
            files = [f"{folder}/{ENGINE}"]
            self.write(files[0], model.with_name(ENGINE).read_bytes())
        else:
            weights = onnxfile.write(onnx.load(model), self.root / folder, self._disk, folder)
            files = [f"{folder}/{onnxfile.GRAPH}"] + ([f"{folder}/{onnxfile.WEIGHTS}"] if weights else [])
        if model.with_name(BUILD).is_file():
            files.append(f"{folder}/{BUILD}")
            self.write(files[-1], model.with_name(BUILD).read_bytes())
        return Variant(
            id=plan.id,
            backend=plan.backend,
            precision=plan.precision,
            requires=requires,
            model=files[0],
            files=files,
            weights=weights,
            graph=graph,
        )

    def add_proof(
        self, chosen: Sequence[int], reference: Reference, limits: Limits, licence: str, consent: str
    ) -> Proof:
        """Writes the proof set: the chosen report frames and what fp32 torch made of them.

        Input tensors are kept in half precision: its rounding lies 60 dB below them, far under any limit.
        """
        tensors: dict[str, np.ndarray] = {}
        for number, index in enumerate(chosen):
            if number < _PROOF_INPUTS:
                tensors[f"input/{number}"] = reference.input(index).astype(np.float16)
            for name, value in reference.outputs(index).items():
                tensors[f"output/{name}/{number}"] = np.ascontiguousarray(value)
        frames = {f"frame/{n}": np.ascontiguousarray(reference.frames[i]) for n, i in enumerate(chosen)}
        answers = [reference.answers[i] for i in chosen]
        self.write("proof/frames.safetensors", save(frames))
        self.write("proof/reference.safetensors", save(tensors))
        self.write("proof/answers.json", msgspec.json.encode(answers))
        return Proof(
            count=len(chosen),
            inputs=min(_PROOF_INPUTS, len(chosen)),
            frames="proof/frames.safetensors",
            reference="proof/reference.safetensors",
            answers="proof/answers.json",
            limits=limits,
            licence=licence,
            consent=consent,
        )

    def finish(self, interface: Interface, variants: list[Variant], proof: Proof) -> bytes:
        """Writes ``bundle.json`` over all files so far, and returns its bytes."""
        files = [
            File(
                path,
                _MEDIA_TYPES.get(Path(path).suffix, "application/octet-stream"),
                (self.root / path).stat().st_size,
                digest,
            )
            for path, digest in sorted(file_digests(self.root).items())
        ]
        described = {name: getattr(interface, name) for name in Interface.__struct_fields__}
        raw = Manifest(**described, variants=variants, proof=proof, files=files).dump()
        Manifest.parse(raw)
        self.write("bundle.json", raw)
        return raw

    def sign(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        """Signs every file that is there now."""
        digests = {path: digest for path, digest in file_digests(self.root).items() if path != "bundle.sig"}
        self.write("bundle.sig", signing.sign(name, digests, key))

    def pack(self, out: Path) -> None:
        pack(self.root, out, self._disk)


def choose_proof_frames(
    interface: Interface, answers: Sequence[Sequence[Answer]], limits: Limits, count: int
) -> list[int]:
    """Which report frames become the proof: those that the fp32 reference is sure of, spread over all that there are.

    Only the reference decides, never a candidate's own error: a candidate must not choose its examiners.

    Raises:
        CompileError: the reference is sure of none.
    """
    post, margin = interface.postprocess, limits.min_margin
    if isinstance(post, Detection):
        sure = [i for i, found in enumerate(answers) if any(a.score >= post.min_score + margin for a in found)]
        empty = [i for i in range(len(answers)) if i not in sure][: count // 4]  # saying nothing is an answer too
        sure = sorted([*_spread(sure, count - len(empty)), *empty]) if sure else []
    else:
        sure = _of_every_label([i for i, found in enumerate(answers) if is_decided(found, margin)], answers, count)
    if not sure:
        raise CompileError(
            f"the model is sure of nothing in {len(answers)} frames (margin {margin:.2f}): a proof would prove "
            "nothing, so give --calib data of what it was trained to see, or check its weights and labels"
        )
    return sure


def _of_every_label(sure: Sequence[int], answers: Sequence[Sequence[Answer]], count: int) -> list[int]:
    """``count`` of the frames, as many of each label as of any other: labels that are exchanged are then seen.

    Where there are more labels than frames, the frames are spread evenly.
    """
    by_label: dict[str, list[int]] = {}
    for index in sure:
        by_label.setdefault(answers[index][0].label, []).append(index)
    if not by_label or len(by_label) > count:
        return _spread(sure, count)
    shares = dict.fromkeys(by_label, 0)
    for _ in range(min(count, len(sure))):
        least = min(
            (label for label in shares if shares[label] < len(by_label[label])), key=lambda label: shares[label]
        )
        shares[least] += 1
    return sorted(index for label, share in shares.items() for index in _spread(by_label[label], share))


def _spread(indices: Sequence[int], count: int) -> list[int]:
    if len(indices) <= count:
        return list(indices)
    return [indices[round(k * (len(indices) - 1) / (count - 1))] for k in range(count)] if count > 1 else [indices[0]]


def sbom(release: str, interface: Interface, tools: Mapping[str, str], weights: Path | None) -> bytes:
    """What the release was made of and with, as CycloneDX 1.6."""
    parts: list[dict[str, Any]] = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in sorted(tools.items())
    ]
    if weights is not None:
        parts.append(
            {"type": "data", "name": weights.name, "hashes": [{"alg": "SHA-256", "content": file_digest(weights)}]}
        )
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "skerry", "version": __version__}]},
            "component": {
                "type": "machine-learning-model",
                "name": interface.name,
                "version": str(interface.version),
                "hashes": [{"alg": "SHA-256", "content": release}],
            },
        },
        "components": parts,
    }
    return msgspec.json.format(msgspec.json.encode(document))
