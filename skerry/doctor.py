"""``skerry doctor``: what this machine can run, what is missing, and how to mend it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from skerry import __version__
from skerry.clock import SystemClock, Trust
from skerry.cpu import cpu_features
from skerry.home import default_key, state_folder

# What a part needs: the extra that brings it, and its packages with the module that each is imported by.
PARTS = {
    "agent": {
        "numpy": "numpy",
        "onnxruntime": "onnxruntime",
        "safetensors": "safetensors",
        "av": "av",
        "pillow": "PIL",
        "anyio": "anyio",
    },
    "compiler": {
        "torch": "torch",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnxruntime": "onnxruntime",
        "rich": "rich",
    },
}
_MIN_FREE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``mend`` says what to do about it; None if it is fine."""

    what: str
    found: str
    mend: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Prints the findings; the exit code is 1 if an agent cannot run here."""
    argparse.ArgumentParser(prog="skerry doctor", description="Say what this machine can run.").parse_args(arguments)
    findings = list(examine())
    for finding in findings:
        print(f"{'✗' if finding.mend else '✓'} {finding.what:<11} {finding.found}")
        if finding.mend:
            print(f"  {'':<11} to mend it: {finding.mend}")
    return int(any(f.mend and f.what in ("python", "agent") for f in findings))


def examine() -> Iterator[Finding]:
    """Looks at everything."""
    yield Finding("skerry", __version__)
    version = platform.python_version()
    yield Finding("python", version, None if sys.version_info >= (3, 10) else "install Python 3.10 or newer")
    yield _cpu()
    yield from (_part(part, packages) for part, packages in PARTS.items())
    yield _onnxruntime()
    yield _disk()
    yield _key()
    yield _clock()


def _cpu() -> Finding:
    cpuinfo = Path("/proc/cpuinfo")
    features = cpu_features(cpuinfo.read_text(errors="replace")) if cpuinfo.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    known = " ".join(features) or "no known features"
    return Finding("machine", f"{platform.machine()}, {os.cpu_count()} cores, {memory:.1f} GiB; {known}")


def _part(part: str, packages: dict[str, str]) -> Finding:
    missing = [package for package, module in packages.items() if util.find_spec(module) is None]
    if missing:
        return Finding(part, f"cannot run: {', '.join(missing)} missing", f"pip install 'skerry[{part}]'")
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return Finding(part, f"can run: {versions}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


def _onnxruntime() -> Finding:
    """Which wheel is there: two of them overwrite the same module, and the one that wins is a matter of luck."""
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name) != "?"]
    if len(wheels) > 1:
        return Finding(
            "onnxruntime",
            f"two wheels overwrite each other: {', '.join(wheels)}",
            "pip uninstall both, then install one",
        )
    if util.find_spec("onnxruntime") is None:
        return Finding("onnxruntime", "not installed", "pip install 'skerry[agent]'; on a Jetson, JetPack's own wheel")
    providers = importlib.import_module("onnxruntime").get_available_providers()
    return Finding("onnxruntime", f"providers: {', '.join(providers)}")


def _disk() -> Finding:
    folder = state_folder(os.environ)
    there = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(there).free
    mend = f"free some space on {there}" if free < _MIN_FREE else None
    return Finding("disk", f"{free / (1 << 30):.1f} GiB free for {folder}", mend)


def _key() -> Finding:
    key = default_key(os.environ)
    if key.is_file():
        return Finding("key", f"this user signs with {key}")
    return Finding("key", "this user has no signing key; `skerry compile` makes one when it is first needed")


def _clock() -> Finding:
    trust = SystemClock().utc().trust
    note = (
        "" if trust is Trust.RTC else " (no real-time clock: times in events are marked so until the network sets it)"
    )
    return Finding("clock", f"{trust.value}{note}")
