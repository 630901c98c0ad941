"""Sources through GStreamer, for hardware decoders and CSI cameras. The child that decodes is `gstreamer_child`.

The pipelines are data (pipelines.toml). Passwords reach the child over its standard input, never its command line.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import selectors
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from typing_extensions import Self

from edge_agent.sources import gstreamer_child
from edge_agent.sources.address import Address, Kind
from edge_agent.sources.credentials import Credentials
from skerry.config import read_toml
from skerry.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import av

_HEAD = struct.calcsize(gstreamer_child.MESSAGE)
_START_S = 10.0  # GStreamer looks through its plugins when it runs for the first time
_MEND = 'install python3-gi, gir1.2-gst-plugins-base-1.0 and gstreamer1.0-plugins-good, or take reader = "pyav"'


@functools.lru_cache
def pipelines() -> dict[str, dict[str, str]]:
    """How each kind of machine decodes: by name, the elements by codec, and ``where`` it runs."""
    return read_toml(Path(__file__).with_name("pipelines.toml"))


@functools.lru_cache
def interpreter() -> str:
    """A Python that has GStreamer's bindings. Raises `SourceError` if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run([python, "-c", "import gi"], capture_output=True, check=False)  # noqa: S603 - fixed
            if done.returncode == 0:
                return python
    raise SourceError(f"no Python here has GStreamer's bindings (gi): {_MEND}")


def check(pipeline: str) -> None:
    """Raises `SourceError` if GStreamer cannot be used here, `ConfigError` for a pipeline that is not known."""
    if pipeline not in pipelines():
        raise ConfigError(f'pipeline "{pipeline}" is not known; there are {", ".join(pipelines())}')
    interpreter()


@dataclass(frozen=True)
class Decoded:
    """A picture: when it was captured, and its time in the stream, if it has one."""

    mono_s: float
    stream_s: float | None
    frame: av.VideoFrame


def pictures(
    address: Address, credentials: Credentials | None, pipeline: str, silence_s: float, *, drop: bool
) -> Iterator[Decoded]:
    """A source's pictures, to the end of a clip, or for ever.

    Args:
        pipeline: a name in pipelines.toml.
        silence_s: a live source is lost when it gives no picture for so long.
        drop: only the newest picture is kept; without it, the source waits.

    Raises:
        SourceError: it cannot be opened or decoded, fell silent, or the child crashed.
    """
    memory = os.memfd_create("skerry-frames")
    try:
        request = _request(address, credentials, pipeline, drop=drop) | {"memory": memory}
        with _Child(request, memory, address.where or address.label) as child:
            limit = _START_S
            while (picture := child.next(limit, silence_s)) is not None:
                yield picture
                limit = silence_s if address.kind.live else _START_S
    finally:
        os.close(memory)


def _request(address: Address, credentials: Credentials | None, pipeline: str, *, drop: bool) -> dict[str, Any]:
    """What the child is told: the source element and its settings, the decoders by codec, or a whole pipeline."""
    check(pipeline)
    known = pipelines()
    decoders = {codec: text for codec, text in known[pipeline].items() if codec not in ("where", "csi")}
    whole, source = "", ""
    settings: dict[str, Union[str, int]]
    if address.kind is Kind.CSI:
        if "csi" not in known[pipeline]:
            raise ConfigError(f'pipeline "{pipeline}" reads no CSI camera; take pipeline = "jetson"')
        whole, settings = known[pipeline]["csi"], {"sensor-id": int(address.where)}
    elif address.kind is Kind.RTSP:
        source = "rtspsrc"
        settings = {"location": address.where, "protocols": "tcp", "latency": 0, "timeout": 2_000_000}
    elif address.kind is Kind.DEVICE:
        source, settings = "v4l2src", {"device": address.where}
    else:
        source, settings = "filesrc", {"location": address.where}
    secrets = {} if credentials is None else {"user-id": credentials.user, "user-pw": credentials.password}
    return {
        "whole": whole,
        "source": source,
        "settings": settings,
        "secrets": secrets,
        "decoders": decoders,
        "drop": drop,
    }


class _Child:
    """The decoding process, and the memory that it shares with this one."""

    def __init__(self, request: Mapping[str, Any], memory: int, where: str) -> None:
        self._request, self._memory, self._where = request, memory, where
        self._view: mmap.mmap | None = None
        self._slot_bytes = 0

    def __enter__(self) -> Self:
        command = [interpreter(), "-I", gstreamer_child.__file__]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # GStreamer's debug output names URLs
            pass_fds=[self._memory],
            env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")},
        )
        self._give(json.dumps(self._request).encode() + b"\n")
        self._ready = selectors.DefaultSelector()
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self._ready.register(self._process.stdout, selectors.EVENT_READ)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._ready.close()
        if self._view is not None:
            self._view.close()

    def next(self, limit_s: float, silence_s: float) -> Decoded | None:
        """The next picture; None at the end of a clip. Raises `SourceError`."""
        head = self._read(_HEAD, limit_s, silence_s)
        slot, width, height, size, captured, stream = struct.unpack(gstreamer_child.MESSAGE, head)
        if slot == gstreamer_child.FAILED:
            words = self._read(width, limit_s, silence_s).decode(errors="replace")
            if words:
                raise SourceError(f"{self._where}: {words}")
            return None
        frame = self._copy(slot, width, height, size)
        self._give(bytes([slot]))
        return Decoded(captured / 1e9, stream / 1e9 if stream >= 0 else None, frame)

    def _read(self, count: int, limit_s: float, silence_s: float) -> bytes:
        found = b""
        while len(found) < count:
            if not self._ready.select(limit_s):
                raise SourceError(f"{self._where} gave no picture for {min(limit_s, silence_s):.1f} s")
            part = os.read(self._process.stdout.fileno(), count - len(found))  # type: ignore[union-attr]
            if not part:
                code = self._process.wait()
                raise SourceError(f"{self._where}: GStreamer's process ended by itself (exit code {code})")
            found += part
        return found

    def _give(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the next read says what happened
            self._process.stdin.write(data)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def _copy(self, slot: int, width: int, height: int, size: int) -> av.VideoFrame:
        """Takes the picture out of its slot. Rows are padded to 4 bytes, as GStreamer's default layout has them."""
        import av  # noqa: PLC0415 - a device that reads no video never loads it

        if size != self._slot_bytes:
            if self._view is not None:
                self._view.close()
            self._view = mmap.mmap(self._memory, gstreamer_child.SLOTS * size, access=mmap.ACCESS_READ)
            self._slot_bytes = size
        stride, rows, wide = -(-width // 4) * 4, (height + 1) // 2 * 3, width & ~1
        assert self._view is not None  # noqa: S101 - made above
        flat = np.frombuffer(self._view, np.uint8, stride * rows, slot * size)
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(flat.reshape(rows, stride)[:, :wide]), format="nv12")
