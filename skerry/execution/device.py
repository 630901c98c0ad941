"""What this device is, read once."""

from __future__ import annotations

import platform
from pathlib import Path

from skerry.cpu import cpu_features
from skerry.execution.backend import available
from skerry.manifest import DeviceFacts


def this_device() -> DeviceFacts:
    """Reads the facts."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return DeviceFacts(arch=platform.machine(), cpu=cpu_features(text), backends=available())
