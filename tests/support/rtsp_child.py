"""An RTSP server with GStreamer's own library, for the system's Python: ``rtsp_child.py '{"rate": 25, …}'``.

Each picture is grey noise with the monotonic millisecond of its making drawn into its top as black and white squares
(tests/support/timecode.py). Prints its port; reads commands, a line each: "freeze", "thaw", "stop" (no more pictures),
"go".
"""

import json
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gi
import numpy as np
import timecode

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

_CODECS = {
    "h264": "x264enc tune=zerolatency sliced-threads=false threads=1 speed-preset=ultrafast key-int-max={key} "
    "bitrate=4000 ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "h265": "x265enc tune=zerolatency speed-preset=ultrafast key-int-max={key} ! rtph265pay name=pay0 pt=96",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


class Pictures:
    """Makes the pictures, for all clients at once."""

    def __init__(self, width, height, rate, *, static):
        self.width, self.height, self.rate, self.static = width, height, rate, static
        self.frozen = self.stopped = False
        self.count = 0
        self._random = np.random.default_rng(0)
        coarse = self._random.integers(96, 160, (height // 16 + 1, width // 16 + 1), np.uint8)
        self._base = np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])
        self._last = None

    def next(self):
        if self.frozen and self._last is not None:
            return self._last
        luma = np.roll(self._base, self.count * 2, axis=1) if not self.static else self._noisy()
        luma = np.ascontiguousarray(luma)
        if not self.static:
            timecode.draw(luma, time.monotonic_ns() // 1_000_000)
        chroma = np.full(self.width * self.height // 2, 128, np.uint8)
        self._last = luma.tobytes() + chroma.tobytes()
        self.count += 1
        return self._last

    def _noisy(self):
        noise = self._random.integers(-2, 3, self._base.shape, np.int8)
        return (self._base.astype(np.int16) + noise).astype(np.uint8)


class Factory(GstRtspServer.RTSPMediaFactory):
    def __init__(self, pictures, codec, key):
        super().__init__()
        self._pictures, self._codec, self._key = pictures, codec, key
        self.set_shared(True)

    def do_create_element(self, _url):
        p = self._pictures
        caps = f"video/x-raw,format=I420,width={p.width},height={p.height},framerate={p.rate}/1"
        source = f"appsrc name=source is-live=true do-timestamp=true format=time block=false caps={caps}"
        return Gst.parse_launch(f"( {source} ! {_CODECS[self._codec].format(key=self._key)} )")

    def do_configure(self, media):
        source = media.get_element().get_child_by_name("source")
        threading.Thread(target=self._feed, args=(source,), daemon=True).start()

    def _feed(self, source):
        due = time.monotonic()
        while True:
            due += 1 / self._pictures.rate
            time.sleep(max(0.0, due - time.monotonic()))
            if self._pictures.stopped:
                continue
            buffer = Gst.Buffer.new_wrapped(self._pictures.next())
            if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return


def listen(pictures, loop):
    for line in sys.stdin:
        command = line.strip()
        if command in ("freeze", "thaw"):
            pictures.frozen = command == "freeze"
        elif command in ("stop", "go"):
            pictures.stopped = command == "stop"
    loop.quit()


def main():
    options = json.loads(sys.argv[1])
    Gst.init(None)
    pictures = Pictures(options["width"], options["height"], options["rate"], static=options["static"])
    server = GstRtspServer.RTSPServer()
    server.set_address(options["address"])
    server.set_service(str(options["port"]))
    factory = Factory(pictures, options["codec"], options["key"])
    if options["user"]:
        protect(server, factory, options["user"], options["password"])
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    loop = GLib.MainLoop()
    print(server.get_bound_port(), flush=True)
    threading.Thread(target=listen, args=(pictures, loop), daemon=True).start()
    loop.run()


def protect(server, factory, user, password):
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


main()
