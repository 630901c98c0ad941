"""The releases that the hub knows. A name and version means one release id for ever."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from cloud_hub.blobs import Blobs
from cloud_hub.store import Store
from cloud_hub.tables import releases
from skerry.bundle import MAX_SIGNATURE_BYTES
from skerry.clock import Clock
from skerry.errors import Conflict, MissingFile, NotFound, TooLarge
from skerry.manifest import MAX_BYTES, Manifest
from skerry.signing import Signature


@dataclass(frozen=True)
class Release:
    """A release that was pushed whole.

    Attributes:
        id: of the release, which is also its manifest's blob.
        signature: blob of ``bundle.sig``.
        signer: fingerprint of the key that signed it. The hub believes nobody; devices check.
    """

    id: str
    name: str
    version: int
    signature: str
    signer: str
    pushed_ms: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Registry:
    """Releases in the store, their files among the blobs."""

    def __init__(self, store: Store, blobs: Blobs, clock: Clock) -> None:
        self._store, self._blobs, self._clock = store, blobs, clock

    def missing(self, signature: str) -> list[str]:
        """Which of a release's blobs are still to be sent."""
        files = Signature.parse(_small(self._blobs.path(signature), MAX_SIGNATURE_BYTES)).files
        return sorted({digest for digest in files.values() if not self._blobs.holds(digest)})

    def push(self, manifest: str, signature: str) -> Release:
        """Makes a release known, once all its blobs are here. Pushing it again changes nothing.

        Args:
            manifest, signature: digests of ``bundle.json`` and ``bundle.sig``.

        Raises:
            FormatError: one of them is not what it should be.
            NotFound, MissingFile: blobs are missing.
            Conflict: this name and version is another release.
        """
        read = Manifest.parse(_small(self._blobs.path(manifest), MAX_BYTES))
        signed = Signature.parse(_small(self._blobs.path(signature), MAX_SIGNATURE_BYTES))
        if signed.files.get("bundle.json") != manifest:
            raise Conflict("bundle.sig does not sign this bundle.json; push both from one bundle")
        if missing := self.missing(signature):
            raise MissingFile(f"{len(missing)} of its blobs are not here, such as sha256:{missing[0]}; send them first")
        made = Release(manifest, read.name, read.version, signature, signed.hint, self._clock.utc().ms)
        return self._store.write(lambda connection: _insert(connection, made))

    def all(self) -> list[Release]:
        """Newest first."""
        query = sa.select(releases).order_by(releases.c.pushed_ms.desc(), releases.c.id)
        return self._store.read(lambda connection: [Release(**row._mapping) for row in connection.execute(query)])  # noqa: SLF001

    def find(self, name: str) -> Release:
        """A release by its id, or as ``name@version``. Raises `NotFound`."""
        word, _, version = name.partition("@")
        if version:
            number = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else -1
            where: sa.ColumnElement[bool] = (releases.c.name == word) & (releases.c.version == number)
        else:
            where = releases.c.id == name
        row = self._store.read(lambda connection: connection.execute(sa.select(releases).where(where)).one_or_none())
        if row is None:
            raise NotFound(f"there is no release {name[:120]!r}; push it with `skerry fleet bundle push`")
        return Release(**row._mapping)  # noqa: SLF001


def _insert(connection: sa.Connection, made: Release) -> Release:
    same = (releases.c.id == made.id) | ((releases.c.name == made.name) & (releases.c.version == made.version))
    row = connection.execute(sa.select(releases).where(same)).first()
    if row is None:
        connection.execute(sa.insert(releases).values(**vars(made)))
        return made
    if row.id != made.id:
        raise Conflict(f"{made} is release {row.id[:12]} already, this one is {made.id[:12]}; give it another version")
    return Release(**row._mapping)  # noqa: SLF001


def _small(path: Path, limit: int) -> bytes:
    if path.stat().st_size > limit:
        raise TooLarge(f"sha256:{path.name} has {path.stat().st_size} bytes; at most {limit} are read as a document")
    return path.read_bytes()
