"""The ``.skb`` file: one canonical ustar archive, written and read as a stream.

Canonical means that a list of files has exactly one byte sequence: ``bundle.json`` and ``bundle.sig`` first, the others
sorted by name, every header field but name and size constant, padding zero, two zero blocks and nothing after them. So
reading is comparing: the header that comes must be the header that we would have written, and there is no second way to
spell a file that a check could miss (tar's links, sparse files, long names, duplicate entries). Any tar tool opens it.

Format: POSIX.1-1988 ustar (IEEE Std 1003.1, pax, "ustar Interchange Format").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from skerry.errors import ArchiveError, LinkRefused, TooLarge, UnsafePath

SUFFIX = ".skb"
FIRST = ("bundle.json", "bundle.sig")

_BLOCK = 512
_MAX_SIZE = 8**11 - 1  # eleven octal digits
_MAX_NAME = 100  # the prefix field is never used
_CHUNK = 1 << 20
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
}


def plain_path(name: str) -> str:
    """Returns ``name`` if it is a plain relative path inside a bundle.

    Plain: 1 to 100 of ``A-Z a-z 0-9 . _ - /``, no empty, ``.`` or ``..`` part. So it needs no quoting anywhere, means
    the same on every file system that tells case apart, and cannot climb out.

    Raises:
        UnsafePath: it is not.
    """
    parts = name.split("/")
    if (
        not 1 <= len(name) <= _MAX_NAME
        or not _NAME_CHARACTERS.issuperset(name)
        or not {"", ".", ".."}.isdisjoint(parts)
    ):
        raise UnsafePath(
            f"unsafe path {name[:120]!r} in a bundle: expected a relative path of at most {_MAX_NAME} letters, digits "
            "and ._-/ without '..'; this bundle was not made by Skerry or was tampered with"
        )
    return name


def order(names: Iterable[str]) -> list[str]:
    """The one order in which an archive holds its files."""
    return sorted(names, key=lambda name: (name not in FIRST, name))


def header(name: str, size: int) -> bytes:
    """The 512-byte header of a file; every field but name, size and checksum is constant."""
    if size > _MAX_SIZE:
        raise TooLarge(f"{name}: {size} bytes; a bundle's file holds at most {_MAX_SIZE}")
    block = bytearray(
        plain_path(name).encode("ascii").ljust(100, b"\0")
        + b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
        + f"{size:011o}\0".encode("ascii") + b"0" * 11 + b"\0"  # size, mtime
        + b" " * 8 + b"0" + bytes(100)  # checksum (counted as blanks), regular file, no link
        + b"ustar\0" + b"00" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)  # magic, version, owners, device, prefix
    )  # fmt: skip
    block[148:156] = f"{sum(block):06o}\0 ".encode("ascii")
    return bytes(block)


def write(files: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """The bytes of an archive of ``(name, size, chunks)``, in the order given, which must be `order`'s."""
    for name, size, chunks in files:
        yield header(name, size)
        written = 0
        for chunk in chunks:
            yield chunk
            written += len(chunk)
        if written != size:
            raise ArchiveError(f"{name} changed while it was packed: expected {size} bytes, read {written}; pack again")
        yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)


@dataclass
class Member:
    """One file of an archive. Its bytes come once, from `chunks`, before the next member is asked for."""

    name: str
    size: int
    _source: BinaryIO = field(repr=False)
    _left: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._left = self.size

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._source.read(min(_CHUNK, self._left))
            if not chunk:
                raise ArchiveError(
                    f"the archive ends inside {self.name}: {self._left} bytes are missing; fetch it again"
                )
            self._left -= len(chunk)
            yield chunk

    def read(self, limit: int) -> bytes:
        """All bytes, if they are at most ``limit``; the size is checked before anything is read."""
        if self.size > limit:
            raise TooLarge(f"{self.name} says that it is {self.size} bytes; at most {limit} are allowed")
        return b"".join(self.chunks())


def read(source: BinaryIO) -> Iterator[Member]:
    """Yields the members of an archive in order. Nothing is written, no length is believed before it is compared.

    Raises:
        ArchiveError: truncated, padded with something, out of order, or a header that `header` would not have written.
        UnsafePath, LinkRefused, TooLarge: what they say.
    """
    last: tuple[bool, str] | None = None
    while True:
        block = _exactly(source, _BLOCK, "a header")
        if block == bytes(_BLOCK):
            break
        member = _member(block, source)
        rank = (member.name not in FIRST, member.name)
        if last is not None and rank <= last:
            raise ArchiveError(f"{member.name} is out of order or twice in the archive; it was not written by Skerry")
        last = rank
        yield member
        for _unread in member.chunks():
            pass
        if any(_exactly(source, -member.size % _BLOCK, "padding")):
            raise ArchiveError(f"the padding after {member.name} is not zero; the archive was damaged or tampered with")
    if any(_exactly(source, _BLOCK, "the end")) or source.read(1):
        raise ArchiveError("there are bytes after the archive's end; it was damaged or tampered with")


def _member(block: bytes, source: BinaryIO) -> Member:
    kind = block[156:157]
    if kind in _KINDS:
        raise LinkRefused(f"{_text(block[:100])!r} is {_KINDS[kind]}; a bundle holds plain files only")
    name = plain_path(_text(block[:100]))
    try:
        size = int(block[124:135], 8)
    except ValueError:
        raise ArchiveError(f"the size of {name} is not a number; the archive was damaged or tampered with") from None
    if size < 0 or header(name, size) != block:
        raise ArchiveError(
            f"the header of {name} is not canonical; the archive was damaged or was not written by Skerry"
        )
    return Member(name, size, source)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _exactly(source: BinaryIO, size: int, what: str) -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise ArchiveError(f"the archive ends where {what} should be; fetch it again")
        data += more
    return data
