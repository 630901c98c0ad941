"""How fast ours is on one thread, beside torch, ONNX Runtime and OpenVINO, all in turn in one process.

Every model of a net runs once to warm up and twice on the clock, in turn, round after round; a ratio is the median of
the rounds' own ratios, so that the machine's drift falls out. The bars hold ours, INT8 alone, to ONNX Runtime's fp32.
Pruned nets are held to ONNX Runtime's fp32 of the dense net, and to one point of its accuracy on photos of clothing.
The peers' INT8 comes from the same fp32 file and the same calibration photos as ours: of each tool, the most accurate
variant counts (`benchmarks.accuracy` says how accurate) and the others are printed too.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy, nets, side
from benchmarks.data import CLOTHING
from benchmarks.release import photos
from benchmarks.results import OUT, Row, ratio, tell
from benchmarks.side import Compiled
from benchmarks.train import trained
from compiler.data import samples
from compiler.search.subject import time_in_turn
from skerry.clock import SystemClock

_SECONDS = 20.0  # of timing a net, about
_BARS = {"resnet18": 1 / 1.7, "mobilenetv2": 1 / 1.2}
_CLOTHING = ("clothing_resnet18", "clothing_mobilenetv2")
_PRUNED_BAR, _MAX_DROP = 1 / 2, 1.0  # of the dense net's time in ONNX Runtime fp32; points
_EPOCHS = 2  # of fine-tuning, for each rung that is tried
_ROUNDS = 200


def main() -> bool:
    """Measures and tells; whether the bars were met."""
    net, calibration = accuracy.imagenet()
    folder, weights = Path("models/mobilenetv2").absolute(), photos().parent / "weights" / "mobilenet_v2-b0353104.pth"
    rows = _rows(net, timed(net, calibration, f"{folder}:{weights}"))
    net, calibration = random_resnet()
    rows += _rows(net, timed(net, calibration, f"{nets.folder('random_resnet')}:"))
    return tell("speed", [*rows, *(row for name in _CLOTHING for row in _pruned(name))])


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
        **{f"ours, {variant}": net.runs(variant) for variant in net.quantized},
        "torch eager": f"torch:{torch}",
        "torch.compile": f"compiled:{torch}",
        "OpenVINO fp32": f"{fp32}@f32",
        "OpenVINO as it comes": f"{fp32}@default",  # bf16 where the CPU has it
        **peers,
        **{f"ours on OpenVINO, {v}": f"{net.model(v)}@f32" for v in net.quantized if not v.endswith("-ov")},
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


# --- pruned and INT8 ------------------------------------------------------------------------------------------------


def _pruned(name: str) -> list[Row]:
    """What `--prune` ships within a point of the dense net, and its time beside ONNX Runtime's fp32 of that net."""
    weights, folder = trained(name), nets.folder(name)
    calibration = accuracy.imagenet_photos()
    dense = side.compile_net(name, folder, calibration, weights, ["native"])
    ours = side.compile_net(f"{name}-pruned", folder, calibration, weights, ["native"], _asked())
    found = json.loads((ours.root / "evidence" / "compile.json").read_bytes())
    models = {"dense": dense.model("fp32"), **{v.id: ours.model(v.id) for v in ours.manifest.variants}}
    series = dict(zip(models, time_in_turn(list(models.values()), _ROUNDS, SystemClock()).times_ms, strict=True))
    ratios = {v: ratio(series[v], series["dense"]) for v in models if v != "dense"}
    best = min(ratios, key=lambda v: ratios[v])
    share, drops = found["pruned"]["share"], {a["variant"]: a for a in found["accuracy"]}
    what = f"{share:.0%} of the parameters pruned" if share else "not pruned"
    note = f"{best}, {what}; dense fp32 {statistics.median(series['dense']):.2f} ms"
    refused = f"; REFUSED: {ours.refused}" if ours.refused else ""
    rows = [
        Row(f"{name}: --prune, within a point, of ONNX Runtime fp32's time", ratios[best], "x", _PRUNED_BAR, note),
        _drop(name, drops.get(best), refused),
    ]
    return [*rows, *(Row(f"{name}: rung {r['ratio']:.1%}", *_rung(r)) for r in found["pruned"]["rungs"])]


def _asked() -> list[str]:
    """The options of a user who wants the net pruned."""
    labels, counted = OUT / "clothing" / "labels.txt", OUT / "clothing" / "eval"
    for file in (f for part in ("validation", "test") for f in CLOTHING.glob(f"{part}/*/*.jpg")):
        (counted / file.parent.name).mkdir(parents=True, exist_ok=True)
        (counted / file.parent.name / file.name).write_bytes(file.read_bytes())
    labels.write_text("\n".join(sorted(p.name for p in counted.iterdir())))
    data = ["--labels", str(labels), "--eval", str(counted), "--train", str(CLOTHING / "train")]
    return [*data, "--prune", "--epochs", str(_EPOCHS), "--max-drop", f"{_MAX_DROP:g}"]


def _drop(name: str, found: Mapping[str, Any] | None, refused: str) -> Row:
    """The drop's upper end; null where nothing was counted: then the dense net ships, in fp32."""
    said = (
        "the dense net in fp32"
        if found is None
        else (f"{found['value']:.1f} % where the dense net has {found['reference']:.1f} %, {found['samples']} photos")
    )
    value = 0.0 if found is None else found["drop_at_most"]
    return Row(f"{name}: --prune, drop at most", value, "points", _MAX_DROP, said + refused)


def _rung(rung: Mapping[str, Any]) -> tuple[float, str, None, str]:
    """Value, unit, bar and note of one pruned net in fp32."""
    drop = "not trained" if rung["drop"] is None else f"drop {rung['drop']:.2f}, {rung['planned']:.2f} planned"
    return rung["times_dense"], "x", None, f"fp32, {rung['times_dense_at_most']:.2f} at most; {drop}"


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
