"""What kind of source an address names. Pure, but for a look at whether a path is a folder."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from skerry.errors import SourceError
from skerry.execution.frames import IMAGES, VIDEOS

EXPECTED = (
    "expected rtsp://host/path, /dev/video0, csi:0, a video file, a folder of images, or push: for pictures that come "
    "over HTTP"
)


class Kind(enum.Enum):
    """How a source behaves. A live one never ends by itself: when it falls silent, it is lost and opened again."""

    RTSP = "rtsp"
    DEVICE = "device"
    CSI = "csi"
    CLIP = "clip"
    FOLDER = "folder"
    PUSH = "push"

    @property
    def live(self) -> bool:
        return self in (Kind.RTSP, Kind.DEVICE, Kind.CSI)


@dataclass(frozen=True)
class Address:
    """A source's kind, and where it is: a URL without credentials, a path, or a sensor's number."""

    kind: Kind
    where: str

    @property
    def label(self) -> str:
        """A short name: a camera's host, a file's name."""
        if self.kind is Kind.RTSP:
            return urlsplit(self.where).hostname or self.where
        return f"csi{self.where}" if self.kind is Kind.CSI else Path(self.where).name or self.kind.value


def parse(text: str) -> Address:
    """What ``text`` names.

    Raises:
        SourceError: nothing that a source can be, or a URL that holds a password.
    """
    scheme = text.partition(":")[0].lower()
    if scheme in ("rtsp", "rtsps"):
        return _camera(text)
    if scheme == "push":
        return Address(Kind.PUSH, "")
    if found := re.fullmatch(r"csi:([0-9]{1,2})", text):
        return Address(Kind.CSI, found[1])
    if "://" in text:
        raise SourceError(f"{scheme}:// is no source that Skerry reads; {EXPECTED}")
    if re.fullmatch(r"/dev/video[0-9]+", text):
        return Address(Kind.DEVICE, text)
    return _path(text)


def _camera(text: str) -> Address:
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        shown = text.replace(f"{parts.netloc.rpartition('@')[0]}@", "…@", 1)
        raise SourceError(
            f"{shown} holds a user or a password, which process lists and logs would show: put them into the "
            'credentials file, and name them here: credentials = "…" (docs/cameras.md)'
        )
    if not parts.hostname:
        raise SourceError(f"{text} names no host; {EXPECTED}")
    return Address(Kind.RTSP, text)


def _path(text: str) -> Address:
    path = Path(text)
    if path.is_dir():
        return Address(Kind.FOLDER, text)
    if not path.exists():
        raise SourceError(f"{text} is not there; {EXPECTED}")
    if path.suffix.lower() not in VIDEOS | IMAGES:
        raise SourceError(f"{text} is neither a video ({' '.join(sorted(VIDEOS))}) nor a folder of images")
    return Address(Kind.CLIP, text)
