"""Two hosts on one machine, and a wire between them that can be bad: every packet passes through this process.

Each host is a network namespace with a TUN device; a thread for each direction reads packets from one and writes them
to the other, later, slower, or never. So the kernel's own TCP meets the loss and the delay. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import needs
from typing_extensions import Self

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_MTU = 1400
_LOCK = Path(tempfile.gettempdir()) / "skerry-wire.lock"
_QUEUE_BYTES = 256 << 10  # a router's buffer: what does not fit is dropped, as there

HUB, DEVICE, OPERATOR = "10.77.0.1", "10.77.0.2", "10.78.0.2"  # the last is the hub's, on a good wire to the test


class Wire:
    """The bad wire: ``loss`` 0 to 1, ``delay_s`` one way, ``rate`` in bytes a second (0: any), ``cut``: nothing passes.

    Use as a context manager. There is one on a machine: a second waits, and clears what a killed one left.
    """

    def __init__(self) -> None:
        needs.program("ip", "iproute2")
        if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
            needs.missing("network namespaces and TUN devices need root")
        self.loss, self.delay_s, self.rate, self.cut = 0.0, 0.0, 0, False
        self.hub, self.device, self._veth = "skerry-hub", "skerry-device", "skerry-good"
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._fds: tuple[int, ...] = ()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._lock = _LOCK.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._clear()
        ends = {}
        for host, address in ((self.hub, HUB), (self.device, DEVICE)):
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            ends[host] = _open_tun(host)
            _ip("-n", host, "address", "add", f"{address}/24", "dev", "wire0")
            _ip("-n", host, "link", "set", "wire0", "mtu", str(_MTU), "up")
        _ip("link", "add", self._veth, "type", "veth", "peer", "name", "good0", "netns", self.hub)
        _ip("address", "add", "10.78.0.1/24", "dev", self._veth)
        _ip("link", "set", self._veth, "up")
        _ip("-n", self.hub, "address", "add", f"{OPERATOR}/24", "dev", "good0")
        _ip("-n", self.hub, "link", "set", "good0", "up")
        self._stop.clear()
        pair = (ends[self.hub], ends[self.device])
        self._fds = pair
        self._threads = [threading.Thread(target=self._carry, args=way, daemon=True) for way in (pair, pair[::-1])]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for fd in self._fds:
            os.close(fd)
        self._fds = ()
        self._clear()
        self._lock.close()

    def _clear(self) -> None:
        subprocess.run(["ip", "link", "del", self._veth], check=False, capture_output=True)
        for host in (self.hub, self.device):
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)

    def good(self) -> None:
        """Everything passes, at once."""
        self.loss, self.delay_s, self.rate, self.cut = 0.0, 0.0, 0, False

    def _carry(self, source: int, sink: int) -> None:
        waiting: list[tuple[float, int, bytes]] = []
        number, free_at, queued = 0, 0.0, 0
        while not self._stop.is_set():
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.2
            ready, _, _ = select.select([source], [], [], min(pause, 0.2))
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, packet = heapq.heappop(waiting)
                queued -= len(packet)
                if not self.cut:
                    os.write(sink, packet)
            if not ready:
                continue
            packet = os.read(source, 65536)
            if self.cut or self._random.random() < self.loss or queued + len(packet) > _QUEUE_BYTES:
                continue
            start = max(now, free_at)
            free_at = start + (len(packet) / self.rate if self.rate else 0.0)
            number += 1
            queued += len(packet)
            heapq.heappush(waiting, (free_at + self.delay_s, number, packet))


def inside(host: str, *command: str) -> list[str]:
    """The command, run on that host."""
    return ["ip", "netns", "exec", host, *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _open_tun(host: str) -> int:
    """A TUN device inside the namespace; the descriptor works from outside."""
    opened: list[int] = []

    def enter_and_open() -> None:  # a thread of its own: a namespace belongs to a thread
        namespace = os.open(f"/run/netns/{host}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"wire0", _IFF_TUN | _IFF_NO_PI))
        opened.append(fd)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    return opened[0]
