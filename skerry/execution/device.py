"""What this device is, read once."""

from __future__ import annotations

import platform
from pathlib import Path

from skerry.execution.backend import available
from skerry.manifest import DeviceFacts

# /proc/cpuinfo's words for what decides a variant, by the name that manifests use.
_FEATURES = {
    "avx2": ("avx2",),
    "vnni": ("avx512_vnni", "avx_vnni"),  # int8 dot products without saturation
    "dotprod": ("asimddp",),
}


def cpu_features(cpuinfo: str) -> list[str]:
    """The features in `/proc/cpuinfo`'s text that manifests may require."""
    words = {
        word
        for line in cpuinfo.splitlines()
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    return [feature for feature, names in _FEATURES.items() if not words.isdisjoint(names)]


def this_device() -> DeviceFacts:
    """Reads the facts."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return DeviceFacts(arch=platform.machine(), cpu=cpu_features(text), backends=available())
