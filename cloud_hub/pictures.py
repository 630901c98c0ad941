"""Pictures that devices sent: each device's own, by digest, within a quota. Served to operators, shown nowhere yet.

<folder>/<device>/<sha256>           a JPEG
<folder>/<device>/<sha256>.json      what stands beside a sample
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cloud_hub.blobs import Blobs
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import FormatError, NotFound
from skerry.wire import Sample

MAX_PICTURE = 8 << 20
MAX_BESIDE = 64 << 10
MAX_DEVICE = 1 << 30  # of one device and kind; its oldest go first
_JPEG = b"\xff\xd8\xff"


class PicturesOf:
    """One kind of pictures, of all devices.

    Args:
        max_device: bytes of one device.
    """

    def __init__(self, folder: Path, disk: Disk, new_id: Callable[[], str], max_device: int = MAX_DEVICE) -> None:
        self._folder, self._disk, self._new_id, self._max_device = folder, disk, new_id, max_device
        self._lock = threading.Lock()
        self._blobs: dict[str, Blobs] = {}
        self._totals: dict[str, int] = {}
        disk.make_dirs(folder)

    def put(self, device: str, sha256: str, chunks: Iterable[bytes]) -> None:
        """Keeps a device's picture.

        Raises:
            DigestMismatch, TooLarge, FormatError: it is not what it says, too large, or no JPEG; nothing is kept.
            StorageError: the disk refused.
        """
        blobs = self._of(device)
        new = not blobs.holds(sha256)
        blobs.put(sha256, _jpeg(chunks))
        if new:
            self._make_room(device, blobs.path(sha256))

    def put_beside(self, device: str, sha256: str, raw: bytes) -> None:
        """Keeps what stands beside a sample that is here. Raises `NotFound` or `FormatError`."""
        path = self.path(device, sha256)
        if parse(raw, Sample, "not a sample's answers").picture.sha256 != sha256:
            raise FormatError(f"these are the answers of another sample than {sha256}")
        self._disk.replace(path.with_suffix(".json"), raw)

    def path(self, device: str, sha256: str) -> Path:
        """Where it lies. Raises `NotFound`."""
        return self._of(device).path(sha256)

    def beside(self, device: str, sha256: str) -> Path:
        """Where that lies what stands beside it. Raises `NotFound`."""
        path = self.path(device, sha256).with_suffix(".json")
        if not path.is_file():
            raise NotFound(f"nothing stands beside the picture {sha256}")
        return path

    def _of(self, device: str) -> Blobs:
        with self._lock:
            if device not in self._blobs:
                self._blobs[device] = Blobs(self._folder / device, self._disk, self._new_id, MAX_PICTURE, ".json")
            return self._blobs[device]

    def _make_room(self, device: str, newest: Path) -> None:
        """Drops a device's oldest, and some more: so that not every picture has the folder looked through."""
        with self._lock:
            if device in self._totals:
                self._totals[device] += newest.stat().st_size
            else:
                self._totals[device] = sum(stat.st_size for stat in self._sizes(device).values())
            if self._totals[device] <= self._max_device:
                return
            sizes = self._sizes(device)
            total = sum(stat.st_size for stat in sizes.values())
            for path in sorted(sizes, key=lambda path: sizes[path].st_mtime_ns):
                if total <= self._max_device * 0.95 or path == newest:
                    break
                self._disk.unlink(path)
                self._disk.unlink(path.with_suffix(".json"))
                total -= sizes[path].st_size
            self._totals[device] = total

    def _sizes(self, device: str) -> dict[Path, os.stat_result]:
        return {path: path.stat() for path in (self._folder / device).iterdir() if "." not in path.name}


def _jpeg(chunks: Iterable[bytes]) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        if len(head) < len(_JPEG):
            head += chunk[: len(_JPEG)]
            if not _JPEG.startswith(head[: len(_JPEG)]):
                raise FormatError("expected a JPEG")
        yield chunk
    if len(head) < len(_JPEG):
        raise FormatError("expected a JPEG, nothing came")
