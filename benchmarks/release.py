"""The release that is measured: MobileNetV2 with ImageNet's weights, compiled for this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
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
    return OUT / "release", unpack_into(OUT / "release", bundle())


def unpack_into(root: Path, packed: Path) -> Manifest:
    """Takes a bundle apart as a device does: signature and digests are verified. Raises `SkerryError`."""
    disk = Disk()
    disk.remove_tree(root)
    with packed.open("rb") as file:
        unpack(file, [signing.load_public_key(key())], lambda name, chunks: _keep(disk, root / name, chunks))
    return Manifest.parse((root / "bundle.json").read_bytes())


def compiled(subject: Path, arguments: Sequence[str], out: Path) -> str | None:
    """Runs the real command on ``subject``, passes resumed where they lie; what it said if it refused, else None."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "skerry", "compile", str(subject), *arguments, "-o", str(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _keep(disk: Disk, path: Path, chunks: Iterable[bytes]) -> None:
    disk.make_dirs(path.parent)
    disk.store(path, chunks)
