"""What this device is, read once."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from skerry.cpu import cpu_features
from skerry.execution.backend import available
from skerry.manifest import DeviceFacts


def this_device() -> DeviceFacts:
    """Reads the facts."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    tegra = Path("/etc/nv_tegra_release")
    release = l4t_release(tegra.read_text(encoding="utf-8", errors="replace")) if tegra.exists() else None
    return DeviceFacts(arch=platform.machine(), cpu=cpu_features(text), backends=available(), l4t=release)


def l4t_release(text: str) -> str | None:
    """The release of Jetson Linux in the text of ``/etc/nv_tegra_release``: "36.4.3"."""
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None
