"""Bundles: a signed directory, or the same as one ``.skb`` file.

    bundle.json          what runs (skerry.manifest); its digest is the release id
    bundle.sig           who built it (skerry.signing); lists every other file
    variants/<id>/       one way to run it each
    proof/               raw frames and the fp32 reference outputs
    evidence/ sbom.json  statements about the release

Nothing of a bundle is used before the signature, and nothing of a file before its digest. The variants that a device
did not choose may be missing; any file that was not signed is refused, whatever its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric import ec

from skerry import archive, signing
from skerry.disk import Disk
from skerry.errors import (
    ArchiveError,
    DigestMismatch,
    ExtraFile,
    LinkRefused,
    MissingFile,
    NotSigned,
    TooLarge,
    UsageError,
)
from skerry.manifest import MAX_BYTES, Manifest, Variant, release_id

MAX_SIGNATURE_BYTES = 4 << 20
MAX_EVIDENCE_BYTES = 64 << 20  # a file about the release, whose size bundle.json does not give
_CHUNK = 1 << 20

# Says which variants a device wants, once it knows what there is.
Choose = Callable[[Manifest], Collection[Variant]]


def every_variant(manifest: Manifest) -> Collection[Variant]:
    """The `Choose` of who wants it all."""
    return manifest.variants


@dataclass(frozen=True)
class Bundle:
    """A bundle whose signature held.

    Attributes:
        release: the release id.
        signer: fingerprint of the key that signed it.
        signed: SHA-256 by path, of every file that was signed.
        sizes: bytes by path, of every file whose size ``bundle.json`` gives.
    """

    manifest: Manifest
    release: str
    signer: str
    signed: Mapping[str, str]
    sizes: Mapping[str, int]

    def limit(self, path: str) -> int:
        """The most bytes that the file at ``path`` may have."""
        return self.sizes.get(path, MAX_EVIDENCE_BYTES)

    def __str__(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version} ({self.release[:12]})"


def view(raw_manifest: bytes, raw_signature: bytes, trusted: Sequence[ec.EllipticCurvePublicKey]) -> Bundle:
    """Checks the signature and that it covers this manifest; the files are still to be checked.

    Raises:
        FormatError, KeyNotTrusted, BadSignature: see `skerry.signing.verify`.
        DigestMismatch: ``bundle.json`` is not the one that was signed.
        MissingFile: the manifest lists a file that was not signed.
    """
    signature = signing.verify(raw_signature, trusted)
    _compare("bundle.json", release_id(raw_manifest), signature.files)
    manifest = Manifest.parse(raw_manifest)
    for file in manifest.files:
        _compare(file.path, file.sha256, signature.files)
    for path in signature.files:
        archive.plain_path(path)
    sizes = {file.path: file.size for file in manifest.files}
    return Bundle(manifest, release_id(raw_manifest), signature.hint, signature.files, sizes)


def _compare(path: str, digest: str, signed: Mapping[str, str]) -> None:
    if path not in signed:
        raise MissingFile(f"{path} is part of the bundle but was not signed")
    if digest != signed[path]:
        raise DigestMismatch(
            f"{path} is not the file that was signed: expected sha256 {signed[path][:16]}…, found {digest[:16]}…; "
            "fetch the bundle again"
        )


# --- a directory ---------------------------------------------------------------------------------------------------


def open_directory(root: Path, trusted: Sequence[ec.EllipticCurvePublicKey], choose: Choose = every_variant) -> Bundle:
    """Verifies a bundle that lies in a directory: signature, every file's digest, nothing missing, nothing extra.

    Raises:
        BundleError: see `skerry.errors`; the message says which rule was broken by which file.
    """
    bundle = view(
        _read(root / "bundle.json", MAX_BYTES, MissingFile),
        _read(root / "bundle.sig", MAX_SIGNATURE_BYTES, NotSigned),
        trusted,
    )
    found = set(_walk(root)) - {"bundle.sig"}
    if extra := found - set(bundle.signed):
        raise ExtraFile(f"{min(extra)!r} is in the bundle but was not signed; remove it or fetch the bundle again")
    if missing := _wanted(bundle, choose) - found:
        raise MissingFile(f"{min(missing)} was signed but is not there; fetch the bundle again")
    for path in sorted(found):
        _compare(path, _digest(root, path, bundle.limit(path)), bundle.signed)
    return bundle


def check_files(root: Path, manifest: Manifest, paths: Collection[str]) -> None:
    """Holds the release's files at ``paths`` to the digests in its manifest.

    Raises:
        MissingFile, TooLarge, DigestMismatch: a file is not the one that the manifest means.
    """
    for file in manifest.files:
        if file.path in paths:
            if not (root / file.path).is_file():
                raise MissingFile(f"{file.path} is not there; install the release again")
            _compare(file.path, _digest(root, file.path, file.size), {file.path: file.sha256})


def _wanted(bundle: Bundle, choose: Choose) -> set[str]:
    """What must be there: every signed file but those of variants that were not chosen."""
    chosen = bundle.manifest.variant_files({v.id for v in choose(bundle.manifest)})
    unchosen = {file.path for file in bundle.manifest.files} - chosen
    return set(bundle.signed) - unchosen


def _walk(root: Path) -> Iterator[str]:
    """Every plain file below ``root`` as a POSIX path; refuses whatever is neither that nor a folder."""
    for folder, folders, files in os.walk(root, onerror=_cannot_list):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                shown = path.relative_to(root).as_posix()
                raise LinkRefused(f"{shown!r} is a link or device; a bundle holds plain files only")
        yield from (Path(folder, name).relative_to(root).as_posix() for name in files)


def _cannot_list(exc: OSError) -> None:
    """An unreadable folder may hide an extra file."""
    raise MissingFile(f"cannot read {exc.filename}: {exc.strerror}") from exc


def _read(path: Path, limit: int, absent: type[MissingFile | NotSigned]) -> bytes:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise LinkRefused(f"{path.name!r} is a link or device; a bundle holds plain files only")
    if not path.is_file():
        raise absent(f"{path} is not there; {path.parent} is not a signed bundle")
    if path.stat().st_size > limit:
        raise TooLarge(f"{path} has {path.stat().st_size} bytes; at most {limit} are allowed")
    return path.read_bytes()


def _digest(root: Path, path: str, limit: int) -> str:
    size = (root / path).stat().st_size
    if size > limit:
        raise TooLarge(f"{path} has {size} bytes; {limit} are expected")
    sha = hashlib.sha256()
    for chunk in file_chunks(root / path):
        sha.update(chunk)
    return sha.hexdigest()


def pack(root: Path, out: Path, disk: Disk) -> None:
    """Writes the directory ``root`` as one ``.skb`` file at ``out``: the same files, the same bytes."""
    names = archive.order(_walk(root))
    disk.store(out, archive.write((name, (root / name).stat().st_size, file_chunks(root / name)) for name in names))


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a piece at a time."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


# --- a stream ------------------------------------------------------------------------------------------------------


def unpack(
    source: BinaryIO,
    trusted: Sequence[ec.EllipticCurvePublicKey],
    keep: Callable[[str, Iterable[bytes]], None],
    choose: Choose = every_variant,
) -> Bundle:
    """Reads a ``.skb`` stream and hands each wanted file's bytes to ``keep`` as they come.

    The signature is checked before the first file, each file's digest when its last byte has passed: what ``keep`` was
    given counts only if `unpack` returns. Files of variants that were not chosen are skipped, and need not be there.

    Raises:
        BundleError: see `skerry.errors`.
    """
    members = archive.read(source)
    raw_manifest = _first(members, "bundle.json", MAX_BYTES)
    raw_signature = _first(members, "bundle.sig", MAX_SIGNATURE_BYTES)
    bundle = view(raw_manifest, raw_signature, trusted)
    wanted = _wanted(bundle, choose)
    keep("bundle.json", [raw_manifest])
    keep("bundle.sig", [raw_signature])
    seen = {"bundle.json"}
    for member in members:
        if member.name not in bundle.signed:
            raise ExtraFile(f"{member.name} is in the bundle but was not signed; fetch the bundle again")
        if member.size > bundle.limit(member.name):
            raise TooLarge(f"{member.name} says {member.size} bytes; {bundle.limit(member.name)} are expected")
        seen.add(member.name)
        sha = hashlib.sha256()
        if member.name in wanted:
            keep(member.name, _hashed(member.chunks(), sha.update))
        else:
            for chunk in member.chunks():
                sha.update(chunk)
        _compare(member.name, sha.hexdigest(), bundle.signed)
    if missing := wanted - seen:
        raise MissingFile(f"{min(missing)} was signed but is not in the bundle; fetch it again")
    return bundle


def gather(
    raw_manifest: bytes,
    raw_signature: bytes,
    read: Callable[[str], Iterable[bytes]],
    trusted: Sequence[ec.EllipticCurvePublicKey],
    keep: Callable[[str, Iterable[bytes]], None],
    choose: Choose = every_variant,
) -> Bundle:
    """As `unpack`, but file by file: ``read`` gives the bytes of a digest, and only of files that are wanted.

    Raises:
        BundleError: see `skerry.errors`.
    """
    bundle = view(raw_manifest, raw_signature, trusted)
    keep("bundle.json", [raw_manifest])
    keep("bundle.sig", [raw_signature])
    for path in sorted(_wanted(bundle, choose) - {"bundle.json"}):
        sha = hashlib.sha256()
        keep(path, _hashed(_limited(path, read(bundle.signed[path]), bundle.limit(path)), sha.update))
        _compare(path, sha.hexdigest(), bundle.signed)
    return bundle


def _limited(path: str, chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"{path} has more than the {limit} bytes that are expected")
        yield chunk


def _first(members: Iterator[archive.Member], name: str, limit: int) -> bytes:
    member = next(members, None)
    if member is None or member.name != name:
        found = member.name if member else "nothing"
        absent = NotSigned if name == "bundle.sig" else ArchiveError
        raise absent(f"expected {name} next in the bundle, found {found}; it was not written by Skerry")
    return member.read(limit)


def _hashed(chunks: Iterable[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


# --- either --------------------------------------------------------------------------------------------------------


def open_bundle(path: Path, trusted: Sequence[ec.EllipticCurvePublicKey]) -> Bundle:
    """Verifies the bundle at ``path``, directory or ``.skb``, and writes nothing."""
    if path.is_dir():
        return open_directory(path, trusted)
    with open_file(path) as file:
        return unpack(file, trusted, keep=_discard)


def read_file(path: Path, name: str, limit: int = MAX_EVIDENCE_BYTES) -> bytes:
    """One file of a bundle, unverified: for showing, after `open_bundle`."""
    if path.is_dir():
        return _read(path / name, limit, MissingFile)
    with open_file(path) as file:
        for member in archive.read(file):
            if member.name == name:
                return member.read(limit)
    raise MissingFile(f"{path} holds no {name}")


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a ``.skb`` for reading, with an error that says what was expected."""
    try:
        file = path.open("rb")
    except OSError as exc:
        raise UsageError(
            f"cannot read the bundle {path}: {exc.strerror}; expected a .skb file or a bundle's folder"
        ) from exc
    with file:
        yield file


def read_manifest(path: Path) -> tuple[bytes, str]:
    """The bytes of a bundle's ``bundle.json``, unverified, and the release id that they make."""
    raw = read_file(path, "bundle.json", MAX_BYTES)
    return raw, release_id(raw)


def _discard(_name: str, chunks: Iterable[bytes]) -> None:
    for _chunk in chunks:
        pass
