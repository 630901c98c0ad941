"""Files by the SHA-256 of their content: what a release is made of, each piece once, whoever shares it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from skerry.disk import Disk
from skerry.errors import DigestMismatch, NotFound, TooLarge, UsageError

MAX_BLOB = 4 << 30
_HEX = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A folder of blobs.

    Args:
        limit: bytes of one blob.
        beside: the ending of files that may stand beside a blob.
    """

    def __init__(
        self, folder: Path, disk: Disk, new_id: Callable[[], str], limit: int = MAX_BLOB, beside: str = ""
    ) -> None:
        self._folder, self._disk, self._new_id, self._limit = folder, disk, new_id, limit
        disk.make_dirs(folder)
        for left in [path for path in folder.iterdir() if not _HEX.fullmatch(path.name.removesuffix(beside))]:
            disk.unlink(left)  # what a stopped hub was about to keep

    def path(self, digest: str) -> Path:
        """Where a blob lies.

        Raises:
            UsageError: not a digest.
            NotFound: there is no such blob.
        """
        path = self._folder / _checked(digest)
        if not path.is_file():
            raise NotFound(f"there is no blob sha256:{digest}")
        return path

    def holds(self, digest: str) -> bool:
        return (self._folder / _checked(digest)).is_file()

    def put(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Keeps what comes, if it is what its name says. Two may put the same blob at once.

        Raises:
            DigestMismatch, TooLarge: it is not; nothing is kept.
            StorageError: the disk refused.
        """
        part = self._folder / f"{_checked(digest)}.{self._new_id()}"
        try:
            self._disk.store(part, _verified(digest, chunks, self._limit))
            self._disk.rename(part, self._folder / digest)
        except BaseException:
            self._disk.unlink(part)
            raise
        self._disk.sync_dir(self._folder)


def _verified(digest: str, chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    sha, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"expected at most {limit} bytes, more came")
        sha.update(chunk)
        yield chunk
    if sha.hexdigest() != digest:
        raise DigestMismatch(f"expected sha256 {digest}, these {size} bytes have {sha.hexdigest()}; send it again")


def _checked(digest: str) -> str:
    if not _HEX.fullmatch(digest):
        raise UsageError(f"{digest[:80]!r} is no SHA-256: expected 64 lower-case hexadecimal digits")
    return digest
