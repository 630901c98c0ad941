"""What the agent keeps on disk about releases: their slots, their proofs, and the one record that decides.

apps/<app>/record.a|b    the record (skerry.update.Record), twice: the highest generation whose checksum holds wins
slots/<release>/         a release, verified and complete: a folder without ".part" is whole, whatever happened
slots/<release>.proof    what its proof measured here (skerry.wire.ProofReport)
inbox/<release>.skb      bundles that were handed in, until their release is in a slot
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import google_crc32c
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.bundle import Bundle, Choose, unpack
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import BundleError, DigestMismatch, FormatError
from skerry.manifest import Manifest
from skerry.update import Record
from skerry.wire import ProofReport

_log = logging.getLogger(__name__)

_PART = ".part"


class _Generation(msgspec.Struct, frozen=True):
    generation: int
    record: Record


class Records:
    """The one record of one app, in two files that are written in turn: a torn write spoils the older one only."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._paths, self._disk = [folder / "record.a", folder / "record.b"], disk
        disk.make_dirs(folder)
        found = [(self._read(path), path) for path in self._paths]
        valid = [(stored, path) for stored, path in found if stored is not None]
        newest, path = max(
            valid, key=lambda pair: pair[0].generation, default=(_Generation(0, Record()), self._paths[1])
        )
        self._generation, self._newest, self.record = newest.generation, path, newest.record

    def save(self, record: Record) -> None:
        """Makes ``record`` the one that counts; after a power cut it is this one or the one before."""
        other = self._paths[1] if self._newest == self._paths[0] else self._paths[0]
        body = msgspec.json.encode(_Generation(self._generation + 1, record))
        new = not other.exists()
        with self._disk.create(other) as file:
            file.write(b"%08x %s\n" % (google_crc32c.value(body), body))
            file.sync()
        if new:
            self._disk.sync_dir(other.parent)
        self._generation, self._newest, self.record = self._generation + 1, other, record

    def _read(self, path: Path) -> _Generation | None:
        try:
            checksum, _, body = path.read_bytes().removesuffix(b"\n").partition(b" ")
            if checksum != b"%08x" % google_crc32c.value(body):
                return None
        except FileNotFoundError:
            return None
        return parse(
            body, _Generation, f"{path} was written by another version of Skerry: update it, or move the file away"
        )


class Fetcher(Protocol):
    """Where a release comes from."""

    def fetch(self, release: str, slots: Slots, choose: Choose) -> None:
        """Brings the release into its slot. Raises `SkerryError` if it cannot be had just now, or must not be used."""

    def done(self, release: str) -> None:
        """The release is in its slot: its source need not be kept."""


# Hands over what a release is made of, as `skerry.bundle.unpack` does.
Take = Callable[[Sequence[ec.EllipticCurvePublicKey], Callable[[str, Iterable[bytes]], None]], Bundle]


class Slots:
    """The releases on this device."""

    def __init__(self, folder: Path, disk: Disk, trusted: Sequence[ec.EllipticCurvePublicKey]) -> None:
        self._folder, self._disk, self._trusted = folder, disk, trusted
        disk.make_dirs(folder)

    def folder(self, release: str) -> Path:
        return self._folder / release

    def holds(self, release: str) -> bool:
        """Whether the release is here, whole."""
        return self.folder(release).is_dir()

    def manifest(self, release: str) -> Manifest:
        return Manifest.parse((self.folder(release) / "bundle.json").read_bytes())

    def stage(self, release: str, source: BinaryIO, choose: Choose) -> Bundle:
        """Takes a release from a ``.skb`` stream into its slot, as `take` does."""
        return self.take(release, lambda trusted, keep: unpack(source, trusted, keep, choose))

    def take(self, release: str, take: Take) -> Bundle:
        """Takes a release into its slot. Nothing of it is left if it is refused.

        Raises:
            BundleError: it is not what was signed by a trusted key, or not the release that was asked for.
            StorageError: the disk refused.
        """
        part = self._folder / (release + _PART)
        self._disk.remove_tree(part)
        folders = {part}
        try:
            self._disk.mkdir(part)
            bundle = take(self._trusted, lambda name, chunks: self._keep(part / name, chunks, folders))
            if bundle.release != release:
                raise DigestMismatch(f"asked for release {release[:12]}, got {bundle}")  # noqa: TRY301 - cleaned up below
            for folder in sorted(folders, reverse=True):
                self._disk.sync_dir(folder)
            self._disk.rename(part, self.folder(release))
        except BaseException:
            self._disk.remove_tree(part)
            raise
        self._disk.sync_dir(self._folder)
        return bundle

    def _keep(self, path: Path, chunks: Iterable[bytes], folders: set[Path]) -> None:
        missing = [folder for folder in [path.parent, *path.parent.parents] if not folder.exists()]
        for folder in reversed(missing):
            self._disk.mkdir(folder)
            folders.add(folder)
        with self._disk.create(path) as file:
            for chunk in chunks:
                file.write(chunk)
            file.sync()

    def save_proof(self, release: str, reports: Sequence[ProofReport]) -> None:
        """Keeps what a proof measured, before anything acts on it."""
        self._disk.replace(self._proof(release), msgspec.json.encode(reports))

    def proof(self, release: str) -> list[ProofReport]:
        """What the release's proof measured here; empty if it never ran."""
        try:
            return parse(self._proof(release).read_bytes(), list[ProofReport], "not a proof's report")
        except (FileNotFoundError, FormatError):
            return []

    def collect(self, in_use: Collection[str]) -> None:
        """Removes what no record needs any more: other releases, their proofs, and half-fetched ones."""
        for path in sorted(self._folder.iterdir()):
            if path.name.endswith(_PART):
                self._disk.remove_tree(path)
            elif path.name.split(".")[0] not in in_use:
                self._discard(path)

    def _discard(self, path: Path) -> None:
        """Takes the name away before the content: half a release must never look like a whole one."""
        part = path.with_name(path.name + _PART)
        self._disk.rename(path, part)
        self._disk.sync_dir(self._folder)
        self._disk.remove_tree(part)

    def _proof(self, release: str) -> Path:
        return self._folder / f"{release}.proof"


class Inbox:
    """A `Fetcher` for bundles that were handed in on this device."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        disk.make_dirs(folder)

    def path(self, release: str) -> Path:
        return self._folder / f"{release}.skb"

    def open(self, release: str) -> BinaryIO:
        try:
            return self.path(release).open("rb")
        except OSError as exc:
            raise BundleError(
                f"release {release[:12]} is not in the inbox; hand it in with `skerry agent install`"
            ) from exc

    def fetch(self, release: str, slots: Slots, choose: Choose) -> None:
        with self.open(release) as source:
            slots.stage(release, source, choose)

    def done(self, release: str) -> None:
        self._disk.unlink(self.path(release))
