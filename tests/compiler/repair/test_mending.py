"""`--repair` on a real variant: refused by its own hop, mended in its own layout, and within that hop's limit."""

from __future__ import annotations

from pathlib import Path

import drawn
import faulty
import numpy as np
import onnx
import pytest
from pictures import noise
from safetensors.numpy import save_file

from compiler.evaluation import compare
from compiler.evaluation.compare import Hop, Reference
from compiler.quantization import calibrate, quantize
from compiler.repair.mending import OnnxBench, mend_onnx
from compiler.repair.repair import Layout
from skerry.execution.processing import Preprocessor
from skerry.manifest import Classification, Interface, Limits, Preprocess

LIMITS = Limits(min_sqnr_db=20.0)
SIZE = faulty.SIZE


def interface() -> Interface:
    preprocess = Preprocess(resize="stretch", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    answers = Classification(scores="scores", activation="none")
    return drawn.interface({"scores": [1, 4]}, preprocess, answers, (SIZE, SIZE), "abcd")


def tensors(seed: int) -> list[np.ndarray]:
    preprocess, found = Preprocessor(interface()), []
    for frame in noise(8, (SIZE, SIZE), seed):
        found.append(np.zeros((1, 3, SIZE, SIZE), np.float32))
        preprocess(frame, found[-1])
    return found


def reference(model: onnx.ModelProto, folder: Path) -> Reference:
    run, kept = compare.literally(model), {}
    for index, tensor in enumerate(tensors(2)):
        kept[f"input/{index}"] = tensor
        kept |= {f"output/{name}/{index}": value for name, value in run(tensor).items()}
    save_file(kept, folder / "reference.safetensors")
    return Reference(folder / "reference.safetensors", noise(8, (SIZE, SIZE), seed=2), interface(), LIMITS.min_margin)


def refused(layout: Layout, against: Reference) -> tuple[onnx.ModelProto, Hop]:
    model = quantize.laid_out(layout.graph, layout.ranges, layout="u8s8-7bit", keep_float=layout.keep_float)
    hop = compare.compare_model("ONNX → int8", against, compare.literally(model), LIMITS, LIMITS.min_sqnr_db)
    assert hop.failed is not None
    return model, hop


@pytest.mark.parametrize(("fault", "kinds"), [("range", {"clip"}), ("channel", {"keep", "residual"})])
def test_a_refused_variant_is_mended_within_its_own_limit(tmp_path: Path, fault: str, kinds: set[str]) -> None:
    net = faulty.chain(2, outlier="block.1.a" if fault == "channel" else "", spread=2000.0)
    graph = faulty.prepared(net, tmp_path)
    ranges = calibrate.ranges(graph, tensors(3), "percentile-frames", 1, lambda _text: None)
    if fault == "range":
        ranges["c0a.relu"] = (0.0, 0.02 * ranges["c0a.relu"][1])
    layout, against = Layout(graph, frozenset(), ranges), reference(graph, tmp_path)
    model, hop = refused(layout, against)
    bench = OnnxBench("u8s8-7bit", against, LIMITS, tensors(3), hop, 1)
    told: list[str] = []

    mended = mend_onnx("int8", model, layout, bench, told.append)

    assert mended.hop.failed is None
    assert mended.hop.name == "ONNX → int8"
    assert mended.hop.sqnr_db >= LIMITS.min_sqnr_db
    assert kinds.issuperset(mend.kind for mend in mended.repair.mends)
    assert mended.repair.builds == len(told) <= mended.repair.most_builds
    again = bench.measure(bench.build(mended.layout))
    assert again == mended.hop  # the layout says all: the same model comes out of it again
