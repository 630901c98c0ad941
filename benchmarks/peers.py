"""What other tools make of the same fp32 ONNX file, and every model's answers and times side by side.

Runs in an environment of its own (benchmarks/needs/peers.txt): ``python -m benchmarks.peers quantize|answer|time``.
Every peer gets the options that its own documentation recommends, several of them, and its best one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from skerry.execution.onnxrt import OnnxrtBackend

Run = Callable[[np.ndarray], np.ndarray]

# --- ONNX Runtime ----------------------------------------------------------------------------------------------------

ORT_METHODS = ("MinMax", "Entropy", "Percentile")


class _Frames:
    """ONNX Runtime's reader over some inputs."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        self._left = iter({name: value[None]} for value in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def by_onnxruntime(model: Path, inputs: np.ndarray, method: str, *, reduce_range: bool, target: Path) -> None:
    """``quantize_static`` as its guide wants it: pre-processed, Q/DQ, U8S8, per channel.

    The calibrator is fed frame by frame: with all at once it keeps every activation of every frame.
    """
    from onnxruntime import quantization as q  # noqa: PLC0415 - heavy, for one command
    from onnxruntime.quantization.calibrate import create_calibrator  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    ready, name = target.with_suffix(".ready.onnx"), onnx.load(model).graph.input[0].name
    quant_pre_process(model, ready, skip_symbolic_shape=True)
    calibrator = create_calibrator(
        ready,
        augmented_model_path=str(target.with_suffix(".augmented.onnx")),
        calibrate_method=q.CalibrationMethod[method],
        extra_options={"symmetric": False},
    )
    for value in inputs:
        calibrator.collect_data(_Frames(name, value[None]))
    found = calibrator.compute_data()
    overrides = {key: [_range(found[key])] for key in found.keys()}  # noqa: SIM118 - not a mapping
    q.quantize_static(
        ready,
        target,
        _Frames(name, inputs[:1]),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        extra_options={"TensorQuantOverrides": overrides},
    )
    for suffix in (".ready.onnx", ".augmented.onnx"):
        target.with_suffix(suffix).unlink(missing_ok=True)


def _range(found: Any) -> dict[str, np.ndarray]:
    low, high = found.range_value
    return {"rmin": np.float32(min(0, np.ravel(low)[0])), "rmax": np.float32(max(0, np.ravel(high)[0]))}


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def by_nncf(
    model: Path, inputs: np.ndarray, *, mixed: bool, exact_biases: bool, transformer: bool, target: Path
) -> None:
    """NNCF's post-training quantization of the same file.

    Constants are folded first, as OpenVINO's converter does: as it is read, NNCF finds no bias that it could correct.
    """
    import nncf  # noqa: PLC0415 - heavy, for one command
    import openvino as ov  # noqa: PLC0415
    from openvino._offline_transformations import apply_moc_transformations  # noqa: PLC0415

    network = ov.Core().read_model(model)
    apply_moc_transformations(network, cf=True)
    quantized = nncf.quantize(
        network,
        nncf.Dataset([value[None] for value in inputs]),
        preset=nncf.QuantizationPreset.MIXED if mixed else nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
        fast_bias_correction=not exact_biases,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    ov.save_model(quantized, target, compress_to_fp16=False)


def on_openvino(model: Path, precision: str) -> Run:
    """OpenVINO's CPU plugin on one thread; "f32" keeps it from computing in bf16, "" lets it choose."""
    import openvino as ov  # noqa: PLC0415 - heavy, and not needed for ONNX Runtime

    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(value: np.ndarray) -> np.ndarray:
        request.infer([value], share_inputs=True)
        return request.get_output_tensor().data

    return run


def on_onnxruntime(model: Path) -> Run:
    """ONNX Runtime as Skerry's devices run it, one thread."""
    backend = OnnxrtBackend(model, threads=1)
    (tensor,) = backend.inputs.values()

    def run(value: np.ndarray) -> np.ndarray:
        tensor[...] = value
        return next(iter(backend.run().values()))

    return run


def runner(model: str) -> Run:
    """What runs ``model``: FILE.onnx, FILE.xml or FILE.onnx@f32 (OpenVINO), torch:FOLDER:WEIGHTS, compiled:FOLDER:…."""
    kind, _, rest = model.partition(":")
    if kind in ("torch", "compiled"):
        return _torch(*rest.split(":"), compiled=kind == "compiled")
    file, at, precision = model.partition("@")
    if at or file.endswith(".xml"):
        return on_openvino(Path(file), precision.removeprefix("default"))
    return on_onnxruntime(Path(file))


def _torch(folder: str, weights: str, *, compiled: bool) -> Run:
    import torch  # noqa: PLC0415 - heavy, and needed for two rows only

    from benchmarks.train import build  # noqa: PLC0415

    torch.set_num_threads(1)
    net = build(Path(folder))
    if weights:
        net.load_state_dict(torch.load(weights, weights_only=True))
    net.eval()
    ready = torch.compile(net) if compiled else net

    def run(value: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return ready(torch.from_numpy(value)).numpy()

    return run


# --- the three commands ----------------------------------------------------------------------------------------------


def quantize(model: Path, inputs: np.ndarray, out: Path, *, transformer: bool, vnni: bool) -> None:
    """Fills ``out`` with every peer's variants; what is there stays."""
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "fp32.onnx"  # in one file: the peers look for ours' weights in the wrong place
    onnx.save(onnx.load(model), whole)
    for target, make in _makers(whole, inputs, out, transformer=transformer, vnni=vnni):
        if not target.is_file():
            part = target.with_stem(target.stem + "-part")
            make(part)
            if part.with_suffix(".bin").is_file():
                part.with_suffix(".bin").rename(target.with_suffix(".bin"))
            part.rename(target)
            print(f"made {target}", flush=True)


def _makers(
    model: Path, inputs: np.ndarray, out: Path, *, transformer: bool, vnni: bool
) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    for method in ORT_METHODS:

        def ours(target: Path, method: str = method) -> None:
            by_onnxruntime(model, inputs, method, reduce_range=not vnni, target=target)

        yield out / f"ort-{method.lower()}.onnx", ours
    for mixed, exact in ((True, False), (True, True), (False, False)):

        def theirs(target: Path, mixed: bool = mixed, exact: bool = exact) -> None:  # noqa: FBT001
            by_nncf(model, inputs, mixed=mixed, exact_biases=exact, transformer=transformer, target=target)

        yield out / f"nncf-{'mixed' if mixed else 'performance'}{'-exact' if exact else ''}.xml", theirs


def answer(models: dict[str, str], inputs: np.ndarray, out: Path) -> None:
    """Writes every model's scores [N, classes] for the inputs."""
    found = {}
    for name, model in models.items():
        run = runner(model)
        found[name] = np.stack([np.array(run(value[None]))[0] for value in inputs])
    np.savez(out, **found)


def times(models: dict[str, str], value: np.ndarray, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each round, all models in turn: one run to warm up, then the mean of two."""
    runs = {name: runner(model) for name, model in models.items()}
    for run in [*runs.values()] * 3:
        run(value)
    found: dict[str, list[float]] = {name: [] for name in runs}
    began, rounds = time.monotonic(), 0
    while rounds < 40 or time.monotonic() - began < seconds:  # 40: fewer bound no ratio
        for name, run in runs.items():
            run(value)
            started = time.perf_counter()
            run(value)
            run(value)
            found[name].append((time.perf_counter() - started) * 500)
        rounds += 1
    return found


def main(arguments: list[str]) -> int:
    """One command; requests and answers are files."""
    options = argparse.ArgumentParser()
    options.add_argument("command", choices=["quantize", "answer", "time"])
    options.add_argument("request", type=Path, help="JSON")
    chosen = options.parse_args(arguments)
    request = json.loads(chosen.request.read_text())
    inputs, out = np.load(request["inputs"], mmap_mode="r"), Path(request["out"])
    if chosen.command == "quantize":
        quantize(
            Path(request["model"]),
            np.array(inputs),
            out,
            transformer=request["transformer"],
            vnni=request["vnni"],
        )
    elif chosen.command == "answer":
        answer(request["models"], inputs, out)
    else:
        found = times(request["models"], np.array(inputs[:1]), request["seconds"])
        out.write_text(json.dumps({"times_ms": found, "onnxruntime": ort.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
