"""``skerry inspect``: verifies a bundle and says what is in it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from skerry import evidence, signing
from skerry.bundle import open_bundle, read_file, read_manifest
from skerry.disk import Disk
from skerry.errors import MissingFile, UsageError
from skerry.home import default_key
from skerry.manifest import Classification, Manifest, Postprocess, needs


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="skerry inspect", description="Verify a bundle and show what is in it.")
    p.add_argument("bundle", type=Path, help="a .skb file or a bundle's folder")
    p.add_argument("--trust", type=Path, action="append", default=[], metavar="PEM", help="the signer's public key")
    p.add_argument("--unverified", action="store_true", help="show it without asking who built it")
    p.add_argument("--files", action="store_true", help="list every file")
    p.add_argument("--layers", action="store_true", help="list every layer: precision asked and real, error")
    p.add_argument("--plan", type=Path, metavar="FILE", help="write the plan that makes the same models again to FILE")
    p.add_argument("--report", type=Path, metavar="FILE", help="write the compiler's page (HTML) to FILE")
    p.add_argument("--json", action="store_true", help="print bundle.json as it is")
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` if the bundle must not be used."""
    options = parser().parse_args(arguments)
    if options.unverified:
        signer = "NOT VERIFIED"
    else:
        signer = f"{open_bundle(options.bundle, trusted_keys(options.trust)).signer[:16]} (trusted)"
    raw, release = read_manifest(options.bundle)
    for file, name in ((options.report, "evidence/report.html"), (options.plan, evidence.PLAN)):
        if file:
            Disk().replace(file, read_file(options.bundle, name))
    if options.json:
        print(raw.decode())
        return 0
    manifest = Manifest.parse(raw)
    print("\n".join([*_summary(manifest, release, signer), *_evidence(options.bundle, layers=options.layers)]))
    if options.files:
        print("\n".join(f"  {file.sha256[:12]}  {file.size:>10}  {file.path}" for file in manifest.files))
    return 0


def trusted_keys(named: Sequence[Path]) -> list[ec.EllipticCurvePublicKey]:
    """The public keys in the files ``named``; this user's own where none is."""
    return [signing.load_public_key(path) for path in named or _own_key()]


def _own_key() -> list[Path]:
    own = default_key(os.environ)
    own = own.with_name(own.name + ".pub")
    if not own.is_file():
        raise UsageError("no key is trusted: name the signer's public key with --trust, or look with --unverified")
    return [own]


def _summary(m: Manifest, release: str, signer: str) -> Iterator[str]:
    entry, pre = m.inputs[0], m.preprocess
    sizes = {file.path: file.size for file in m.files}
    yield f"{m.name}@{m.version}   release {release}"
    yield f"signed by  {signer}"
    yield f"task       {m.task}, {len(m.labels)} labels"
    yield f"input      {entry.name} {entry.dtype} {'x'.join(map(str, entry.shape))}"
    yield (
        f"           {pre.color}, {pre.resize}{f' of {pre.resize_to}' if pre.resize_to else ''}, {pre.interpolation}"
        f"{', antialiased' if pre.antialias else ''}; scale {pre.scale:.6g}, mean {list(pre.mean)}, std {list(pre.std)}"
    )
    for tensor in m.outputs:
        yield f"output     {tensor.name} {tensor.dtype} {'x'.join(map(str, tensor.shape))}"
    yield f"answers    {_answers(m.postprocess)}"
    for v in m.variants:
        size, wants = sum(sizes[path] for path in v.files), needs(v.backend, v.requires)
        yield f"variant    {v.id}: {v.precision} on {v.backend}, {size / 1e6:.2f} MB; needs {wants}"
    p, limits = m.proof, m.proof.limits
    yield f"proof      {p.count} frames; licence {p.licence}; consent {p.consent}"
    yield (
        f"           input ≥ {limits.min_input_sqnr_db:g} dB, outputs ≥ {limits.min_sqnr_db:g} dB, "
        f"agreement ≥ {limits.min_agreement:.0%} where {_decided(m.postprocess)} ≥ {limits.min_margin:g}, "
        f"time ≤ {limits.max_time_ratio:g} x fp32"
    )


def _answers(post: Postprocess) -> str:
    if isinstance(post, Classification):
        return f"the best {post.top} labels with a score of {post.min_score:g} and more, after {post.activation}"
    return (
        f"boxes with a score of {post.min_score:g} and more, after {post.activation}; of two that overlap by more than "
        f"{post.iou_threshold:g} the better; {post.max_boxes} at most"
    )


def _decided(post: Postprocess) -> str:
    """What a proof calls sure: by how much."""
    if isinstance(post, Classification):
        return "the best label leads by"
    return "a box is over the threshold by"


def _evidence(bundle: Path, *, layers: bool) -> Iterator[str]:
    """What the compiler found, and the plan that would make the same again."""
    try:
        yield from evidence.lines(read_file(bundle, evidence.COMPILED), layers=layers)
    except MissingFile:
        yield "evidence   none"
    with contextlib.suppress(MissingFile):
        plan = read_file(bundle, evidence.PLAN)
        yield f"plan       sha256 {hashlib.sha256(plan).hexdigest()[:16]}, {len(plan)} bytes; --plan FILE writes it"
