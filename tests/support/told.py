"""Evidence as a long compilation leaves it, made up: every part is full."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np

from compiler.candidate import Step
from compiler.evaluation.compare import Hop
from compiler.evidence.evidence import Accuracy, Calibration, Evidence, Layer, Mend, Point, Race, Repair, Timing
from skerry.wire import ProofReport


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


RELEASE = digest("release")


def full(layers: int = 58) -> Evidence:
    """fp32, an int8 variant that runs here and another that does not; the search tried forty candidates."""
    return Evidence(
        release=RELEASE,
        name="street <b>",
        version=3,
        hops=[
            Hop(name="pre-processing", frames=64, sqnr_db=58.2, limit_db=40.0),
            Hop(name="torch → ONNX fp32", frames=64, sqnr_db=118.4, limit_db=60.0, same=51, decided=51),
            Hop(name="ONNX → int8-rr", frames=64, sqnr_db=19.3, limit_db=15.0, same=50, decided=51),
        ],
        timings=[
            Timing(model="torch", median_ms=48.1, times_torch=None, times_fp32=3.98, bytes=0),
            Timing(model="fp32", median_ms=12.08, times_torch=0.25, times_fp32=None, bytes=14_212_000),
            Timing(
                model="int8-rr",
                median_ms=8.21,
                times_torch=0.17,
                times_fp32=0.68,
                bytes=3_902_000,
                times_fp32_at_most=0.71,
            ),
            Timing(model="int8-vnni", median_ms=None, times_torch=None, times_fp32=None, bytes=3_881_000),
        ],
        proofs=[proof("fp32", 110.0), proof("int8-rr", 19.1)],
        forced=[],
        assumed=["pre-processing: shorter side to 256, centre crop, ImageNet's mean and std"],
        unmeasured={"int8-vnni": "needs CPU feature vnni"},
        calibration=Calibration(digest=digest("calibration"), frames=400, report_frames=64),
        lineage={name: digest(name) for name in ("code", "recipe", "calibration", "weights")},
        passes={
            "fp32": steps("load", "export"),
            "int8-rr": steps("load", "export", "calibrate", "quantize-int8-rr"),
            "int8-vnni": steps("load", "export", "calibrate", "quantize-int8-vnni"),
        },
        tools={"torch": "2.13.0", "onnxruntime": "1.31.1"},
        machine=["x86_64", "avx2"],
        accuracy=[
            accuracy("int8-rr", 0.28, 0.47, None),
            accuracy("int8-vnni", 0.31, 0.58, 420),
        ],
        search=points(),
        left_out={"int8-dotprod": "slower than fp32: 1.07 x, at most 1.11"},
        layers={"int8-rr": row_of_layers(layers)},
        repairs=[
            Repair(
                variant="int8-rr",
                mends=[
                    Mend(kind="clip", where=["hardtanh_3"], before_db=6.2, after_db=11.9),
                    Mend(kind="keep", where=["node_Conv_815"], before_db=11.9, after_db=19.3),
                ],
                builds=9,
                most_builds=16,
                float_units=1,
                units=53,
                float_share=0.013,
            )
        ],
        races=[Race(variant="int8-vnni", backend="openvino", beside="int8-rr", times=0.86, times_at_most=0.9)],
        precisions={"fp32": "fp32", "int8-rr": "int8", "int8-vnni": "int8"},
        max_latency_ms=9.0,
    )


def bare() -> Evidence:
    """What the first release of the compiler could say, and nothing more."""
    empty = {
        "left_out": {},
        "accuracy": [],
        "search": [],
        "layers": {},
        "repairs": [],
        "races": [],
        "precisions": {},
        "max_latency_ms": None,
    }
    return msgspec.structs.replace(full(), proofs=[], **empty)


def proof(variant: str, sqnr_db: float) -> ProofReport:
    return ProofReport(
        release=RELEASE,
        variant=variant,
        backend="onnxrt",
        provider="CPUExecutionProvider",
        version="1.31.1",
        threads=1,
        input_sqnr_db=61.0,
        sqnr_db=sqnr_db,
        same=16,
        decided=16,
        time_ms=14.2,
        time_ratio=None if variant == "fp32" else 0.72,
        peak_mib=131.0,
    )


def steps(*names: str) -> list[Step]:
    return [Step(name, digest(f"key {name}"), digest(f"files {name}")) for name in names]


def accuracy(variant: str, drop: float, at_most: float, needs_more: int | None) -> Accuracy:
    return Accuracy(
        variant=variant,
        metric="top-1",
        samples=1890,
        reference=87.42,
        value=87.42 - drop,
        drop=drop,
        drop_at_most=at_most,
        budget=0.5,
        needs_more=needs_more,
    )


def points() -> list[Point]:
    random = np.random.default_rng(4)
    found = []
    for number in range(40):
        share = number / 39
        found.append(
            Point(
                variant="int8-rr",
                name=f"c{number}",
                quantized=round(53 * share),
                units=53,
                pruned=0.2 if number % 9 == 4 else 0.0,
                drop=float(2.2 * share**3 + random.normal(0, 0.06)),
                times_fp32=float(1.0 - 0.36 * share + random.normal(0, 0.015)),
                bytes=int(14_212_000 - 10_300_000 * share),
                chosen=number == 22,
            )
        )
    return found


def row_of_layers(count: int) -> list[Layer]:
    random = np.random.default_rng(7)
    found = []
    for number in range(count):
        asked = "fp32" if number in (7, 8) else "fp16" if number == 20 else "int8"
        ran = "fp32" if number in (30, count - 2) else asked
        found.append(
            Layer(
                name=f"features.{number // 3}.conv.{number % 3}",
                kind="Add" if number % 5 == 4 else "Conv",
                requested=asked,
                real=ran,
                sqnr_db=float(34.0 - 14 * number / count + random.normal(0, 1.5) - (9 if number == 41 else 0)),
            )
        )
    return found
