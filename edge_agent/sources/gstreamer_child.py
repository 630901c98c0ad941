"""GStreamer in a process of its own: decodes one source and puts NV12 pictures into memory shared with the agent.

Runs under whichever Python has GStreamer's bindings (the system's, as a rule), so it imports nothing of Skerry. A
decoder that crashes ends this process and no other.

    in    one line of JSON, as edge_agent/sources/gstreamer.py writes it; then a byte for each slot that is free again
    out   for each picture, `MESSAGE`; for what ends the stream, the same with slot 255, followed by words
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
import threading
import time
from typing import Any, NoReturn

SLOTS = 3
MESSAGE = (
    "<BIIQQq"  # slot, width, height, bytes of a slot, capture in monotonic ns, time in the stream in ns (-1: none)
)
FAILED = 255


def main() -> int:
    """The exit code: 0 after the end of a stream, 1 after a failure that was told."""
    request = json.loads(sys.stdin.buffer.readline())
    try:
        import gi  # noqa: PLC0415 - whose absence is told like any other failure

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: PLC0415, F401 - GstApp gives the sink its methods
    except (ImportError, ValueError) as exc:
        return fail(f"GStreamer's Python bindings are not here: {exc}")
    Gst.init(None)
    return Decoder(Gst, request).run()


class Decoder:
    """One pipeline: source, parser, decoder by the stream's codec, sink."""

    def __init__(self, gst: Any, request: dict[str, Any]) -> None:
        self._gst, self._request = gst, request
        self._free = list(range(SLOTS))
        self._given_back = threading.Condition()
        self._memory: mmap.mmap | None = None
        self._slot_bytes = 0
        self._refused: str | None = None

    def run(self) -> int:
        """Plays to the end, or to a failure."""
        gst = self._gst
        try:
            pipeline = self._pipeline()
        except Exception as exc:  # noqa: BLE001 - GLib's errors, and a missing element's
            return fail(str(exc))
        self._sink = pipeline.get_by_name("sink")
        threading.Thread(target=self._listen, daemon=True).start()
        pipeline.set_state(gst.State.PLAYING)
        bus = pipeline.get_bus()
        while True:
            sample = self._sink.try_pull_sample(100 * gst.MSECOND)
            if sample is not None:
                self._give(sample)
                continue
            message = bus.timed_pop_filtered(0, gst.MessageType.ERROR | gst.MessageType.EOS)
            if self._refused:
                return fail(self._refused)
            if message is not None and message.type == gst.MessageType.ERROR:
                return fail(message.parse_error()[0].message)
            if message is not None or self._sink.is_eos():
                return fail("")

    def _pipeline(self) -> Any:
        gst, request = self._gst, self._request
        drop = "true" if request["drop"] else "false"
        tail = f"capsfilter caps=video/x-raw,format=NV12 ! appsink name=sink sync=false max-buffers=2 drop={drop}"
        if request["whole"]:  # from camera to NV12, as a CSI camera is
            pipeline = gst.parse_launch(f"{request['whole']} ! {tail}")
        else:
            pipeline = gst.parse_launch(f"{request['source']} name=source")
            pipeline = self._by_codec(pipeline, tail)
        source = pipeline.get_by_name("source")
        for name, value in request["settings"].items():
            if isinstance(value, str):
                gst.util_set_object_arg(source, name, value)
            else:
                source.set_property(name, value)
        for name, value in request["secrets"].items():
            source.set_property(name, value)
        return pipeline

    def _by_codec(self, source: Any, tail: str) -> Any:
        """Source ! parsebin, and behind it the decoder of the first picture stream that comes out."""
        gst = self._gst
        pipeline, parse = gst.Pipeline.new("skerry"), gst.ElementFactory.make("parsebin")
        if parse is None:
            raise RuntimeError("GStreamer's parsebin is missing: install gstreamer1.0-plugins-base")
        pipeline.add(source)
        pipeline.add(parse)

        def found(_source: Any, pad: Any) -> None:
            caps = pad.get_current_caps() or pad.query_caps(None)
            if "video" in caps.to_string() or "image" in caps.to_string():
                target = parse.get_static_pad("sink")
                if not target.is_linked():
                    pad.link(target)

        def parsed(_parse: Any, pad: Any) -> None:
            self._decode(pipeline, pad)

        parse.connect("pad-added", parsed)
        if source.get_static_pad("src") is not None:
            source.link(parse)
        else:
            source.connect("pad-added", found)
        sink = gst.parse_bin_from_description(tail, True)
        pipeline.add(sink)
        self._tail = sink
        return pipeline

    def _decode(self, pipeline: Any, pad: Any) -> None:
        """Links a parsed stream to its decoder; what is no picture is left alone."""
        gst, caps = self._gst, (pad.get_current_caps() or pad.query_caps(None)).get_structure(0)
        kinds = {
            "video/x-h264": "h264",
            "video/x-h265": "h265",
            "video/mpeg": "mpeg4",
            "image/jpeg": "jpeg",
            "video/x-raw": "raw",
        }
        kind = kinds.get(caps.get_name())
        if kind is None:
            return
        decoders = self._request["decoders"]
        if kind not in decoders:
            self._refused = f"it sends {kind}; this pipeline decodes {', '.join(decoders)}"
            return
        try:
            decoder = gst.parse_bin_from_description(f"queue max-size-buffers=2 ! {decoders[kind]}", True)
        except Exception as exc:  # noqa: BLE001 - GLib's error
            self._refused = str(exc)
            return
        pipeline.add(decoder)
        decoder.link(self._tail)
        decoder.sync_state_with_parent()
        if pad.link(decoder.get_static_pad("sink")) != gst.PadLinkReturn.OK:
            self._refused = f"GStreamer cannot link its {kind} to {decoders[kind]}"

    def _listen(self) -> NoReturn:
        while True:
            byte = sys.stdin.buffer.read(1)
            if not byte:
                os._exit(0)  # the agent is gone
            with self._given_back:
                self._free.append(byte[0])
                self._given_back.notify()

    def _give(self, sample: Any) -> None:
        """Copies a picture into a free slot, and says so."""
        captured = time.monotonic_ns()
        buffer, caps = sample.get_buffer(), sample.get_caps().get_structure(0)
        with self._given_back:
            while not self._free:
                self._given_back.wait()
            slot = self._free.pop(0)
        done, mapped = buffer.map(self._gst.MapFlags.READ)
        if not done:
            self._free.append(slot)
            return
        try:
            size = mapped.size
            if size > self._slot_bytes:
                self._grow(size)
            assert self._memory is not None  # noqa: S101 - `_grow` made it
            start = slot * self._slot_bytes
            self._memory[start : start + size] = mapped.data
        finally:
            buffer.unmap(mapped)
        pts = buffer.pts if buffer.pts != self._gst.CLOCK_TIME_NONE else -1
        say(slot, caps.get_value("width"), caps.get_value("height"), self._slot_bytes, captured, pts)

    def _grow(self, size: int) -> None:
        """Only at the first picture, and when a camera changes its size: then every slot must be free."""
        with self._given_back:
            while self._memory is not None and len(self._free) < SLOTS - 1:
                self._given_back.wait()
        self._slot_bytes = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self._request["memory"], SLOTS * self._slot_bytes)
        self._memory = mmap.mmap(self._request["memory"], SLOTS * self._slot_bytes)


def say(slot: int, width: int, height: int, size: int, captured: int, pts: int, words: bytes = b"") -> None:
    """Writes one `MESSAGE`."""
    sys.stdout.buffer.write(struct.pack(MESSAGE, slot, width, height, size, captured, pts) + words)
    sys.stdout.buffer.flush()


def fail(words: str) -> int:
    """Says why there are no more pictures; no words mean the end of the stream."""
    text = words.encode()[:2000]
    say(FAILED, len(text), 0, 0, 0, -1, text)
    return 0 if not words else 1


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: no orphan keeps a camera open
    sys.exit(main())
