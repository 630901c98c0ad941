"""The release that is measured: MobileNetV2 with ImageNet's weights, compiled for this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.results import OUT
from skerry import signing
from skerry.bundle import unpack
from skerry.disk import Disk
from skerry.manifest import Manifest

VIDEO = Path("assets/video/bikes.mp4")


def environment() -> dict[str, str]:
    """The benchmarks' own keys and caches, apart from the user's."""
    home = OUT.absolute() / "home"
    return {**os.environ, **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "STATE")}}


def key() -> Path:
    """The public key that the release is signed with."""
    return OUT.absolute() / "home" / "config" / "skerry" / "signing.pem.pub"


def photos() -> Path:
    """The folder of photos, fetched if need be."""
    subprocess.run([sys.executable, "scripts/fetch_assets.py", "assets"], check=True, stdout=subprocess.DEVNULL)
    return Path("assets/photos").absolute()


def bundle() -> Path:
    """Compiles the release; passes that were run before are not run again."""
    photos()
    out = OUT / "mobilenetv2.skb"
    OUT.mkdir(parents=True, exist_ok=True)
    data = ["--weights", "assets/weights/mobilenet_v2-b0353104.pth", "--calib", "assets/photos", "--calib", str(VIDEO)]
    command = [sys.executable, "-m", "skerry", "compile", "models/mobilenetv2", *data, "-o", str(out)]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    return out


def unpacked() -> tuple[Path, Manifest]:
    """The release as a folder, and its manifest."""
    root, disk = OUT / "release", Disk()
    packed = bundle()
    disk.remove_tree(root)
    with packed.open("rb") as file:
        unpack(file, [signing.load_public_key(key())], lambda name, chunks: _keep(disk, root / name, chunks))
    return root, Manifest.parse((root / "bundle.json").read_bytes())


def _keep(disk: Disk, path: Path, chunks) -> None:  # noqa: ANN001 - bytes as they are read
    disk.make_dirs(path.parent)
    disk.store(path, chunks)
