"""How fast ours is on one thread, beside torch, ONNX Runtime and OpenVINO, all in turn in one process.

Every model of a net runs once to warm up and twice on the clock, in turn, round after round; a ratio is the median of
the rounds' own ratios, so that the machine's drift falls out. The bars hold ours, INT8 alone, to ONNX Runtime's fp32.
The peers' INT8 comes from the same fp32 file and the same calibration photos as ours: of each tool, the most accurate
variant counts (`benchmarks.accuracy` says how accurate) and the others are printed too.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import accuracy, nets, side
from benchmarks.release import photos
from benchmarks.results import Row, ratio, tell
from benchmarks.side import Compiled
from compiler import samples

_SECONDS = 20.0  # of timing a net, about
_BARS = {"resnet18": 1 / 1.7, "mobilenetv2": 1 / 1.2}


def main() -> bool:
    """Measures and tells; whether the bars were met."""
    net, calibration = accuracy.imagenet()
    folder, weights = Path("models/mobilenetv2").absolute(), photos().parent / "weights" / "mobilenet_v2-b0353104.pth"
    rows = _rows(net, timed(net, calibration, f"{folder}:{weights}"))
    net, calibration = random_resnet()
    rows += _rows(net, timed(net, calibration, f"{nets.folder('random_resnet')}:"))
    what = "fine-tuned on clothing: pruned and INT8, within a point, of ONNX Runtime fp32's time"
    rows.append(Row(what, None, "x", 1 / 2, "waits for pruning"))
    return tell("speed", rows)


def random_resnet() -> tuple[Compiled, Path]:
    """ResNet-18 with random weights, which run as fast as any, and the inputs that it was calibrated with."""
    pictures = accuracy.imagenet_photos()
    net = side.compile_net("resnet18", nets.folder("random_resnet"), pictures, None)
    used = [Path(s.path) for s in samples.collect([pictures]).calibration]
    return net, side.tensors(net.manifest, used, side.FOLDER / "resnet18-calibration.npy")


def timed(net: Compiled, calibration: Path, torch: str) -> dict[str, list[float]]:
    """Milliseconds a round of every model of a net. ``torch`` names its folder and weights."""
    peers = side.variants(net, calibration, transformer=False, vnni=side.has_vnni())
    fp32 = str(net.model("fp32"))
    models = {
        "ONNX Runtime fp32": fp32,
        **{f"ours, {variant}": str(net.model(variant)) for variant in net.quantized},
        "torch eager": f"torch:{torch}",
        "torch.compile": f"compiled:{torch}",
        "OpenVINO fp32": f"{fp32}@f32",
        "OpenVINO as it comes": f"{fp32}@default",  # bf16 where the CPU has it
        **peers,
        **{f"ours on OpenVINO, {variant}": f"{net.model(variant)}@f32" for variant in net.quantized},
    }
    out = side.FOLDER.absolute() / f"{net.name}-times.json"
    side.peer("time", {"models": models, "inputs": str(calibration), "out": str(out), "seconds": _SECONDS})
    found: dict[str, list[float]] = json.loads(out.read_text())["times_ms"]
    return found


def _rows(net: Compiled, times: Mapping[str, Sequence[float]]) -> list[Row]:
    base = times["ONNX Runtime fp32"]
    ratios = {name: ratio(found, base) for name, found in times.items()}
    ours = {name: value for name, value in ratios.items() if name.startswith("ours, ")}
    best = min(ours, key=lambda name: ours[name])
    note = f"{best}, {1 / ours[best]:.2f} times as fast; {len(base)} rounds" + (
        f"; {net.refused}" if net.refused else ""
    )
    rows = [Row(f"{net.name}: INT8 alone, of ONNX Runtime fp32's time", ours[best], "x", _BARS[net.name], note)]
    return rows + [
        Row(f"{net.name}: {name}", value, "x", None, f"{statistics.median(times[name]):.2f} ms")
        for name, value in sorted(ratios.items(), key=lambda pair: pair[1])
    ]


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
