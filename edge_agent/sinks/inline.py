"""An event's bytes for a receiver elsewhere: as they are, or with the event's picture in them."""

from __future__ import annotations

import base64
from collections.abc import Callable

import msgspec

from skerry.errors import FormatError
from skerry.wire import Picture, Stored, encode

ReadPicture = Callable[[str], "bytes | None"]


class Head(msgspec.Struct):
    """What of an event decides where it goes, whatever its kind is."""

    kind: str
    source: str | None = None
    app: str | None = None
    picture: Picture | None = None


class _Illustrated(msgspec.Struct):
    stream: str
    seq: int
    event: msgspec.Raw
    picture: str | None


def head(stored: Stored) -> Head:
    """Raises `FormatError` if it is no event."""
    try:
        return msgspec.json.decode(bytes(stored.event), type=Head)
    except msgspec.DecodeError as exc:
        raise FormatError(f"event #{stored.seq} is none: {exc}") from exc


class Inline:
    """Makes an event's bytes.

    Args:
        read: a picture's file by its digest, None if it is gone; None: pictures are not wanted.
    """

    def __init__(self, read: ReadPicture | None) -> None:
        self._read = read

    def encode(self, stored: Stored) -> bytes:
        """``{"stream", "seq", "event"}``, and ``picture`` (base64, or null if there is none or it is gone)."""
        if self._read is None:
            return encode(stored)
        picture = head(stored).picture
        raw = self._read(picture.sha256) if picture is not None else None
        text = base64.b64encode(raw).decode("ascii") if raw is not None else None
        return encode(_Illustrated(stored.stream, stored.seq, stored.event, text))
