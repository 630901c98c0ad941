"""JPEGs on this device, by their digest, within a quota: the oldest go first, and what went is counted.

<folder>/<number>-<sha256>.jpg     numbers grow: they tell the age, which a clock that jumps would not
<folder>/<number>-<sha256>.json    what stands beside it, if anything does
<folder>/cursor                    the number up to which the hub has them
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from skerry.disk import Disk
from skerry.errors import StorageFull
from skerry.execution.processing import Frame
from skerry.wire import Picture

_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.jpg")


def encode_jpeg(pixels: Frame, quality: int, longest: int | None = None) -> tuple[bytes, Picture]:
    """A JPEG of RGB uint8 [H, W, 3]; its longer side has at most ``longest`` pixels."""
    from PIL import Image  # noqa: PLC0415 - 7 MiB that an agent without pictures does not need

    image = Image.fromarray(pixels)
    if longest is not None and max(image.size) > longest:
        scale = longest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    raw = file.getvalue()
    digest = hashlib.sha256(raw).hexdigest()
    return raw, Picture(sha256=digest, bytes=len(raw), width=image.width, height=image.height)


@dataclass(frozen=True)
class Kept:
    """A picture that is there. ``bytes`` are those of all its files."""

    number: int
    sha256: str
    bytes: int


class Pictures:
    """A folder of them. Any thread may call.

    Attributes:
        dropped: pictures that went for newer ones; ``unsent`` of them before the hub had them.
    """

    def __init__(self, folder: Path, disk: Disk, max_bytes: int) -> None:
        self._folder, self._disk, self._max_bytes = folder, disk, max_bytes
        self._lock = threading.Lock()
        disk.make_dirs(folder)
        self._sent = self._saved = self._load_cursor()
        self._kept = self._look()
        self._by_digest = {kept.sha256: kept for kept in self._kept}
        self._size = sum(kept.bytes for kept in self._kept)
        self._number = max([self._sent, *(kept.number for kept in self._kept)])
        self.dropped = self.unsent = 0

    @property
    def count(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        return self._size

    def put(self, jpeg: bytes, sha256: str, beside: bytes | None = None) -> None:
        """Keeps a picture, synced; one that is here already stays as it is.

        Raises:
            StorageError: the disk refused, or the picture is larger than the quota.
        """
        size = len(jpeg) + len(beside or b"")
        if size > self._max_bytes:
            raise StorageFull(f"a picture of {size} bytes does not fit into {self._max_bytes}: raise its max_mib")
        with self._lock:
            if sha256 in self._by_digest:
                return
            self._make_room(size)
            self._number += 1
            kept = Kept(self._number, sha256, size)
            if beside is not None:
                self._disk.replace(self._path(kept, "json"), beside)
            self._disk.replace(self._path(kept, "jpg"), jpeg)
            self._kept.append(kept)
            self._by_digest[sha256] = kept
            self._size += size

    def holds(self, sha256: str) -> bool:
        """Whether it is here."""
        return sha256 in self._by_digest

    def read(self, sha256: str) -> bytes | None:
        """A picture's file; None if it is not here, or not any more."""
        return self._read(sha256, "jpg")

    def beside(self, sha256: str) -> bytes | None:
        """What stands beside it."""
        return self._read(sha256, "json")

    def _read(self, sha256: str, kind: str) -> bytes | None:
        with self._lock:
            kept = self._by_digest.get(sha256)
            try:
                return self._path(kept, kind).read_bytes() if kept is not None else None
            except FileNotFoundError:
                return None

    # For the hub

    @property
    def waiting(self) -> int:
        """How many the hub does not have."""
        with self._lock:
            return sum(kept.number > self._sent for kept in self._kept)

    def oldest(self) -> Kept | None:
        """The oldest that the hub does not have."""
        with self._lock:
            return next((kept for kept in self._kept if kept.number > self._sent), None)

    def sent(self, number: int) -> None:
        """The hub has it, or will never take it."""
        self._sent = max(self._sent, number)

    def save(self) -> None:
        """Remembers what was sent. Not needed after each: the hub takes one twice."""
        if self._sent != self._saved:
            self._disk.replace(self._folder / "cursor", b"%d\n" % self._sent)
            self._saved = self._sent

    # On the disk

    def _make_room(self, size: int) -> None:
        while self._kept and self._size + size > self._max_bytes:
            oldest = self._kept[0]
            self._disk.unlink(self._path(oldest, "jpg"))
            self._disk.unlink(self._path(oldest, "json"))
            del self._kept[0], self._by_digest[oldest.sha256]
            self._size -= oldest.bytes
            self.dropped += 1
            self.unsent += oldest.number > self._sent

    def _path(self, kept: Kept, kind: str) -> Path:
        return self._folder / f"{kept.number:012d}-{kept.sha256}.{kind}"

    def _load_cursor(self) -> int:
        try:
            return int((self._folder / "cursor").read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def _look(self) -> list[Kept]:
        """What is there, oldest first; what a power cut left of others goes."""
        found = []
        for path in sorted(self._folder.glob("*.jpg")):
            if match := _NAME.fullmatch(path.name):
                beside = path.with_suffix(".json")
                size = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
                found.append(Kept(int(match[1]), match[2], size))
        for path in [*self._folder.glob("*.part"), *self._folder.glob("*.json")]:
            if path.suffix == ".part" or not path.with_suffix(".jpg").exists():
                self._disk.unlink(path)
        return found
