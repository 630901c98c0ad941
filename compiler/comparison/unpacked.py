"""Bundles to run here: verified as ``skerry inspect`` does, and unpacked where a backend can read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from compiler.comparison.contest import Entry
from skerry import archive
from skerry.bundle import check_files, open_directory, open_file, unpack
from skerry.disk import Disk
from skerry.errors import BundleError, MissingFile, UsageError
from skerry.inspect import trusted_keys
from skerry.manifest import DeviceFacts, Manifest, release_id, why_not


@dataclass(frozen=True)
class Opened:
    """A bundle that was verified and lies unpacked in ``root``."""

    path: Path
    root: Path
    manifest: Manifest
    release: str

    def entry(self, variant: str) -> Entry:
        return Entry(str(self.root.resolve()), variant)

    def who(self, variant: str) -> str:
        return f"{self.path.name}, variant {variant}"

    def candidates(self, wanted: str | None, facts: DeviceFacts) -> list[str]:
        """The variants that this machine can run, or the one that is ``wanted``.

        Raises:
            UsageError: there is none.
        """
        variants = {variant.id: variant for variant in self.manifest.variants}
        if wanted is not None and wanted not in variants:
            raise UsageError(f"{self.path.name} has no variant {wanted!r}; there are: {', '.join(variants)}")
        asked = [v for v in variants.values() if wanted in (None, v.id)]
        why = {v.id: why_not(v.backend, v.requires, facts) for v in asked}
        can = [variant for variant, reason in why.items() if reason is None]
        if not can:
            reasons = "; ".join(f"{variant} {reason}" for variant, reason in why.items())
            raise UsageError(f"{self.path.name} has nothing that this machine can run: {reasons}")
        return can


def open_for_running(path: Path, trust: Sequence[Path] | None, root: Path) -> Opened:
    """Verifies the bundle at ``path`` as inspect does (``trust`` None: asks for no signature) and unpacks it.

    Raises:
        BundleError: it must not be used; the message names which of the two it is.
    """
    root = path if path.is_dir() else root
    try:
        raw = _verified(path, trust, root)
    except BundleError as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    return Opened(path, root, Manifest.parse(raw), release_id(raw))


def _verified(path: Path, trust: Sequence[Path] | None, root: Path) -> bytes:
    """The ``bundle.json`` of a bundle whose every file is the one that it names."""
    if not path.is_dir():
        _unpack(path, trust, root)
    elif trust is not None:
        open_directory(path, trusted_keys(trust))
    if not (root / "bundle.json").is_file():
        raise MissingFile("bundle.json is not there; expected a .skb file or a bundle's folder")
    raw = (root / "bundle.json").read_bytes()
    manifest = Manifest.parse(raw)
    check_files(root, manifest, {file.path for file in manifest.files})
    return raw


def _unpack(path: Path, trust: Sequence[Path] | None, root: Path) -> None:
    disk = Disk()
    with open_file(path) as file:
        if trust is not None:
            unpack(file, trusted_keys(trust), keep=lambda name, chunks: _keep(disk, root / name, b"".join(chunks)))
        else:
            for member in archive.read(file):
                _keep(disk, root / archive.plain_path(member.name), b"".join(member.chunks()))


def _keep(disk: Disk, path: Path, data: bytes) -> None:
    disk.make_dirs(path.parent)
    disk.replace(path, data)


def check_comparable(a: Opened, b: Opened) -> None:
    """Raises `UsageError` if the two do not answer the same question."""
    one, other = a.manifest, b.manifest
    if one.task != other.task:
        raise UsageError(f"{a.path.name} does {one.task}, {b.path.name} does {other.task}: there is nothing to compare")
    if differ := set(one.labels) ^ set(other.labels):
        raise UsageError(
            f"{a.path.name} knows {len(one.labels)} labels, {b.path.name} {len(other.labels)}, and not the same: "
            f"{', '.join(sorted(differ)[:5])}; compare models of the same task"
        )


def differences(a: tuple[Opened, str], b: tuple[Opened, str]) -> Iterator[str]:
    """What a device would do otherwise with a variant of b than with one of a, besides running another model."""
    one, other = a[0].manifest, b[0].manifest
    for what in ("preprocess", "postprocess"):
        before, after = (msgspec.to_builtins(getattr(manifest, what)) for manifest in (one, other))
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                yield f"{what} {key}: {_word(before.get(key))} → {_word(after.get(key))}"
    shapes = ["x".join(map(str, manifest.inputs[0].shape)) for manifest in (one, other)]
    if shapes[0] != shapes[1]:
        yield f"input: {shapes[0]} → {shapes[1]}"
    graphs = [msgspec.to_builtins(bundle.manifest.variant(variant).graph) for bundle, variant in (a, b)]
    if graphs[0] != graphs[1]:
        yield f"done in the graph: {_word(graphs[0])} → {_word(graphs[1])}"


def _word(value: object) -> str:
    return "nothing" if value is None else str(value)
