"""Live cameras through PyAV, decoded in this process: RTSP, and USB cameras of the kernel (V4L2).

Set for low delay: no buffering, one slice-wise decoding thread, and no wait that is longer than the camera may be
silent. FFmpeg's own error texts carry the URL with its password: none of them leaves this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from edge_agent.sources.address import Address, Kind
from edge_agent.sources.credentials import Credentials
from skerry.errors import SourceError

if TYPE_CHECKING:
    import av
    import av.container

_OPEN_S = 2.0
_DAMAGED_S = 1.0  # after a damaged picture, those that build on it are not believed for so long, or till a key frame
_RTSP = {
    "rtsp_transport": "tcp",
    "fflags": "nobuffer",
    "flags": "low_delay",
    "max_delay": "0",
    "analyzeduration": "500000",
    "probesize": "65536",
}


def pictures(
    address: Address, credentials: Credentials | None, silence_s: float, now: Callable[[], float]
) -> Iterator[av.VideoFrame]:
    """A camera's pictures as they come, for ever.

    Args:
        silence_s: the camera is lost when it gives no picture for so long.
        now: seconds, monotonic.

    Raises:
        SourceError: it cannot be opened, fell silent, ended, or sends what cannot be decoded.
    """
    import av  # noqa: PLC0415 - a device that reads no video never loads it

    try:
        container = _open(address, credentials, silence_s)
    except (av.FFmpegError, OSError) as exc:
        raise SourceError(f"{address.where} cannot be opened: {_why(exc)}") from None
    with container:
        if not container.streams.video:
            raise SourceError(f"{address.where} has no video")
        yield from _good(_frames(container, address, silence_s, now), now)


def _open(address: Address, credentials: Credentials | None, silence_s: float) -> av.container.InputContainer:
    import av  # noqa: PLC0415 - as above

    timeout = (_OPEN_S, silence_s)
    if address.kind is Kind.DEVICE:
        return av.open(address.where, format="v4l2", options={"fflags": "nobuffer"}, timeout=timeout)
    return av.open(_with(address.where, credentials), options=_RTSP, timeout=timeout)


def _with(url: str, credentials: Credentials | None) -> str:
    if credentials is None:
        return url
    parts = urlsplit(url)
    login = f"{quote(credentials.user, safe='')}:{quote(credentials.password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.netloc}"))


def _frames(
    container: av.container.InputContainer, address: Address, silence_s: float, now: Callable[[], float]
) -> Iterator[av.VideoFrame]:
    """Raises `SourceError` when no picture came for ``silence_s``, whatever else came."""
    import av  # noqa: PLC0415 - as above

    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # the other cores belong to inference
    last, undecoded = now(), 0
    try:
        for packet in container.demux(stream):
            # FFmpeg gives up a read at its limit, then hands out the parser's rest: that is no sign of life.
            if now() - last > silence_s:
                raise SourceError(_silent(address, silence_s, undecoded))
            try:
                found = packet.decode()
            except av.FFmpegError:
                undecoded += 1
                continue
            for frame in found:
                last, undecoded = now(), 0
                yield frame
                last = now()  # what the reader took to hand it on is not the camera's silence
    except av.FFmpegError as exc:
        if now() - last >= silence_s * 0.9:
            raise SourceError(_silent(address, silence_s, undecoded)) from None
        raise SourceError(f"{address.where} broke off: {_why(exc)}") from None
    raise SourceError(f"{address.where} ended its stream")


def _good(frames: Iterator[av.VideoFrame], now: Callable[[], float]) -> Iterator[av.VideoFrame]:
    """Leaves out what the decoder calls damaged, and what was built on it: a smeared picture makes false events."""
    doubtful_until = 0.0
    for frame in frames:
        if frame.is_corrupt:
            doubtful_until = now() + _DAMAGED_S
        elif frame.key_frame or now() >= doubtful_until:
            doubtful_until = 0.0
            yield frame


def _silent(address: Address, silence_s: float, undecoded: int) -> str:
    damaged = f"; {undecoded} packets came that cannot be decoded" if undecoded else ""
    return f"{address.where} gave no picture for {silence_s:.1f} s{damaged}"


def _why(exc: Exception) -> str:
    """The error's own words, without the URL."""
    import av  # noqa: PLC0415 - as above

    if isinstance(exc, av.error.ExitError):
        return f"no answer within {_OPEN_S:g} s"
    if isinstance(exc, av.error.HTTPUnauthorizedError):
        return 'it wants a user and a password, or other ones: credentials = "…" (docs/cameras.md)'
    return str(getattr(exc, "strerror", None) or type(exc).__name__)
