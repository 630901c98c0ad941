"""What calibrating weighs, by each method: peak memory of a process that calibrates a detector on 1,000 640x640 images.

Beside it ONNX Runtime's own entropy calibrator on a few images, in a process of its own each: what it needs for one
more image, times 1,000, is what it would need here.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import onnx

from benchmarks.detector import detector
from benchmarks.results import OUT, Row, tell
from compiler.quantization.calibrate import METHODS

IMAGES = 1000
BAR_MIB = 2000.0
_FEW, _MORE = 4, 8
_MODEL = OUT / "detector.onnx"


def images(count: int) -> Iterator[np.ndarray]:
    """Soft blotches with noise on them, so that no two are alike."""
    random = np.random.default_rng(0)
    for _ in range(count):
        blotches = random.normal(size=(1, 3, 20, 20)).astype(np.float32).repeat(32, 2).repeat(32, 3)
        yield blotches + random.normal(0, 0.1, (1, 3, 640, 640)).astype(np.float32)


def with_ours(count: int, method: str) -> None:
    """Calibrates as `skerry compile` does."""
    from compiler.quantization import calibrate  # noqa: PLC0415 - the child measures what it imports, too

    done = [0]

    def told(_text: str) -> None:
        done[0] += 1
        if done[0] % 100 == 0:
            print(f"  {done[0]} images", file=sys.stderr, flush=True)

    calibrate.ranges(onnx.load(_MODEL), images(count), method, 2, told)  # type: ignore[arg-type]


def with_onnxruntime(count: int, _method: str) -> None:
    """Its entropy calibrator, as `quantize_static` runs it."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator  # noqa: PLC0415

    class Reader(CalibrationDataReader):
        left = images(count)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    augmented = str(_MODEL.with_suffix(".augmented.onnx"))
    calibrator = create_calibrator(_MODEL, None, augmented, CalibrationMethod.Entropy)
    calibrator.collect_data(Reader())
    calibrator.compute_data()


def measured(who: str, count: int, method: str = "entropy") -> dict[str, float]:
    """Peak resident memory in MiB and processor seconds of one calibration in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.calibration", who, str(count), method]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(who: str, count: str, method: str) -> None:
    """What a measured process does."""
    started = time.process_time()
    {"ours": with_ours, "onnxruntime": with_onnxruntime}[who](int(count), method)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": peak, "seconds": time.process_time() - started}))


def main() -> bool:
    """Measures and tells; whether the bar was met."""
    OUT.mkdir(parents=True, exist_ok=True)
    onnx.save(detector(), _MODEL)
    rows = [row for method in METHODS for row in _of(method)]
    few, more = (measured("onnxruntime", count) for count in (_FEW, _MORE))
    growth = (more["mib"] - few["mib"]) / (_MORE - _FEW)
    return tell(
        "calibration",
        [
            *rows,
            Row(f"onnxruntime's entropy, {_FEW} images", few["mib"], "MiB"),
            Row(f"onnxruntime's entropy, {_MORE} images", more["mib"], "MiB"),
            Row("its growth for one more image", growth, "MiB", None, f"{growth * IMAGES / 1024:.0f} GiB for {IMAGES}"),
        ],
    )


def _of(method: str) -> list[Row]:
    few, many = measured("ours", _MORE, method), measured("ours", IMAGES, method)
    growth = (many["mib"] - few["mib"]) / (IMAGES - _MORE)
    note = f"peak resident memory; {growth:+.3f} MiB for one more image, {_MORE} took {few['mib']:.0f} MiB"
    print(f"{method}: {many['mib']:.0f} MiB, {many['seconds']:.0f} s", file=sys.stderr, flush=True)
    return [
        Row(f"{method}, {IMAGES} images at 640x640", many["mib"], "MiB", BAR_MIB, note),
        Row(f"{method}: processor time of an image", many["seconds"] / IMAGES, "s"),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        raise SystemExit(0 if main() else 1)
