"""Real pictures for the benchmarks, each with its label: Fashion-MNIST and photos of clothing."""

from __future__ import annotations

import gzip
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import OUT

_PACKAGE = "dataset-fashion-mnist"  # Debian's, 31 MB, MIT
_PLACE = "usr/share/datasets/fashion-mnist"
CLOTHING = Path("../shared/data/clothing")  # Grigorev's small set, CC0: shrunk to 160 pixels


@dataclass(frozen=True)
class Pictures:
    """Pictures uint8 [N, H, W] or [N, H, W, 3] and their labels [N]."""

    images: np.ndarray
    labels: np.ndarray

    def frames(self) -> np.ndarray:
        """As a camera would give them: [N, H, W, 3]."""
        return self.images if self.images.ndim == 4 else np.repeat(self.images[..., None], 3, axis=3)


def fashion(part: str) -> Pictures:
    """Fashion-MNIST (Xiao et al., 2017): "train", 60,000 pictures of 28x28, or "t10k", 10,000."""
    folder = _fashion_folder()
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return Pictures(images, labels)


def _fashion_folder() -> Path:
    installed, fetched = Path("/") / _PLACE, OUT / "fashion"
    if installed.is_dir():
        return installed
    if not (fetched / _PLACE).is_dir():
        fetched.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", _PACKAGE], check=True, cwd=fetched, stdout=subprocess.DEVNULL)
        (package,) = fetched.glob(f"{_PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(fetched)], check=True)
    return fetched / _PLACE


def clothing(parts: tuple[str, ...], size: int) -> Pictures:
    """Photos of ten classes, stretched to ``size``. Raises `SystemExit` where they are not."""
    if not CLOTHING.is_dir():
        raise SystemExit(f"{CLOTHING} is not there: the photos of clothing do not come with the repository")
    classes = sorted(p.name for p in (CLOTHING / "train").iterdir())
    files = [file for part in parts for name in classes for file in sorted((CLOTHING / part / name).glob("*.jpg"))]
    images = [Image.open(f).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for f in files]
    return Pictures(np.stack([np.asarray(i) for i in images]), np.array([classes.index(f.parent.name) for f in files]))


def as_files(pictures: np.ndarray, folder: Path) -> Path:
    """Writes pictures as PNG, for what reads files."""
    if not (folder / ".written").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{number:05}.png")
        (folder / ".written").touch()
    return folder
