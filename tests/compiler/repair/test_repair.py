"""Planted faults, and what mends them: in few builds, in the right place, and said with what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faulty
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from compiler.evaluation import compare
from compiler.evaluation.compare import Hop
from compiler.evidence import layers
from compiler.graph import layernorm, rounding
from compiler.graph.onnxfile import weights_of
from compiler.repair import repair
from compiler.repair.repair import Findings, Layout, Mended
from skerry.execution.parity import Noise

MIN_DB = 20.0


@dataclass(frozen=True)
class Unit:
    """As compiler/quantization/units.py gives them: a weighted node and what follows it."""

    name: str
    nodes: tuple[str, ...]
    macs: int = 1


def units_of(model: onnx.ModelProto) -> list[Unit]:
    found: list[list[str]] = []
    for node in model.graph.node:
        if node.op_type in layers.WEIGHTED or not found:
            found.append([])
        found[-1].append(node.name)
    return [Unit(nodes[0], tuple(nodes)) for nodes in found]


def held(model: onnx.ModelProto, reference: onnx.ModelProto, min_db: float = MIN_DB) -> Hop:
    """A model's scores against the reference's, literally."""
    run, wanted, noise = compare.literally(model), compare.literally(reference), Noise()
    for tensor in faulty.frames():
        noise.add(wanted(tensor)["scores"], run(tensor)["scores"])
    db = noise.db()
    failed = None if db >= min_db else f"outputs differ from torch: {db:.1f} dB, at least {min_db:.0f} wanted"
    return Hop(name="hop", frames=8, sqnr_db=db, limit_db=min_db, failed=failed)


@dataclass
class Int8:
    """Builds INT8 for CPUs; ``bend`` plants a fault into whatever was built."""

    folder: Path
    reference: onnx.ModelProto
    bend: Callable[[onnx.ModelProto], None] = lambda _model: None
    min_db: float = MIN_DB
    write: Callable[..., onnx.ModelProto] = faulty.quantized
    builds: int = 0

    def build(self, layout: Layout) -> onnx.ModelProto:
        self.builds += 1
        model = self.write(layout.graph, self.folder, dict(layout.ranges), tuple(layout.keep_float))
        self.bend(model)
        return model

    def measure(self, model: onnx.ModelProto) -> Hop:
        return held(model, self.reference, self.min_db)


def mended(bench: Int8, layout: Layout, *, look: bool = True) -> Mended:
    """Fails once, then is mended; ``look`` for the layers' errors, which an engine could not give."""
    model = bench.build(layout)
    failed = bench.measure(model)
    assert failed.failed is not None
    pairs = {t.value: t.found for t in layers.find_twins(layout.graph, model) if t.value and t.found}
    errors = layers.sqnr(layout.graph, model, pairs, faulty.frames(2)) if look else {}
    bench.builds = 0
    result = repair.mend("int8", layout, failed, bench, units_of(layout.graph), Findings(errors, faulty.frames(4)))
    assert result.repair.builds == bench.builds <= result.repair.most_builds
    return result


def net_of(model: onnx.ModelProto, folder: Path) -> Layout:
    graph = faulty.prepared(model, folder)
    norms = {node.name for node in graph.graph.node if node.op_type == "LayerNormalization"}
    return Layout(graph, frozenset(norms), faulty.found_ranges(graph))


@pytest.mark.parametrize("look", [True, False], ids=["errors-known", "engine"])
def test_a_layer_with_an_outlier_channel_and_its_reader_stay_in_floats(tmp_path: Path, *, look: bool) -> None:
    layout = net_of(faulty.chain(3, outlier="block.1.a"), tmp_path)

    result = mended(Int8(tmp_path, layout.graph, min_db=24.0), layout, look=look)

    assert result.hop.failed is None
    (mend,) = [m for m in result.repair.mends if m.kind == "keep"]
    assert set(mend.where) == {"node_c1a", "node_c1b"}
    assert mend.before_db < 24.0 <= mend.after_db
    assert (result.repair.float_units, result.repair.units) == (2, 8)
    assert result.repair.float_share == pytest.approx(2 / 8)


def test_a_giant_weight_keeps_its_own_layer_in_floats_and_no_other(tmp_path: Path) -> None:
    """It multiplies a channel that is always zero: no grid of weights holds the others beside it."""
    model = faulty.chain(3)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "block.1.a.weight":
            array[3] = 0.0
        elif tensor.name == "block.1.b.weight":
            array[:, 3] = 1e4
        elif tensor.name == "block.1.a.bias":
            array[3] = -1.0
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    layout = net_of(model, tmp_path)

    result = mended(Int8(tmp_path, layout.graph), layout)

    assert result.hop.failed is None
    assert result.repair.mends[-1].where == ["node_c1b"]
    assert result.repair.float_units == 1


@pytest.mark.parametrize("share", [0.05, 1000.0], ids=["saturates", "coarse"])
@pytest.mark.parametrize("value", ["c1a.relu", "out0"], ids=["layer", "add"])
def test_a_wrong_scale_is_put_right_and_costs_no_speed(tmp_path: Path, value: str, share: float) -> None:
    layout = net_of(faulty.chain(3), tmp_path)
    low, high = layout.ranges[value]
    wrong = Layout(layout.graph, layout.keep_float, {**layout.ranges, value: (low * share, high * share)})

    result = mended(Int8(tmp_path, layout.graph), wrong)

    assert result.hop.failed is None
    assert [(mend.kind, mend.where) for mend in result.repair.mends] == [("clip", [value])]
    assert result.layout.ranges[value][1] == pytest.approx(high, rel=0.3)
    assert (result.repair.builds, result.repair.float_units, result.repair.float_share) == (1, 0, 0.0)


def test_ranges_that_are_all_wrong_are_all_put_right(tmp_path: Path) -> None:
    """The worst by a hundred times are not enough: what is left is no better."""
    layout = net_of(faulty.chain(3), tmp_path)
    spread = 10 ** np.random.default_rng(7).uniform(-2, 2, len(layout.ranges))
    guessed = {name: (-reach, reach) for name, reach in zip(layout.ranges, spread.tolist(), strict=True)}

    result = mended(Int8(tmp_path, layout.graph), Layout(layout.graph, layout.keep_float, guessed))

    assert result.hop.failed is None
    assert {mend.kind for mend in result.repair.mends} == {"clip"}
    assert result.repair.builds <= 2
    assert result.repair.float_units == 0


def test_additions_of_a_residual_stream_with_a_loud_channel_stay_in_floats(tmp_path: Path) -> None:
    """Our own layout leaves them alone; a writer that quantizes all that it can does not."""
    layout = net_of(faulty.stream(), tmp_path)
    assert held(faulty.quantized(layout.graph, tmp_path, dict(layout.ranges)), layout.graph).failed is None

    result = mended(Int8(tmp_path, layout.graph, write=faulty.quantized_by_the_book), layout)

    assert result.hop.failed is None
    assert result.repair.mends[-1].kind == "residual"
    assert result.repair.mends[-1].where == ["node_add0", "node_add1", "node_add2"]


# Half precision


@dataclass
class Half:
    """Builds what fp16 computes: each value rounded, but for those of the nodes that are kept. It has no ranges."""

    reference: onnx.ModelProto
    builds: int = 0
    seen: list[frozenset[str]] = field(default_factory=list)

    def build(self, layout: Layout) -> onnx.ModelProto:
        self.builds += 1
        self.seen.append(layout.keep_float)
        model = onnx.ModelProto()
        model.CopyFrom(layout.graph)
        del model.graph.node[:]
        for node in layout.graph.graph.node:
            rounds = node.name not in layout.keep_float and node.output[0] != "scores"
            model.graph.node.extend(rounding._rounding(node, set(node.output)) if rounds else [node])
        return model

    def measure(self, model: onnx.ModelProto) -> Hop:
        return held(model, self.reference, 40.0)


def overflowing(*, odd: bool) -> tuple[Half, Layout, Hop]:
    model = faulty.normed(odd=odd, loud=5000.0)
    bench, layout = Half(model), Layout(model, frozenset(), {})
    failed = bench.measure(bench.build(layout))
    assert failed.sqnr_db < 20, "the square must overflow"
    return bench, layout, failed


def test_a_normalization_in_parts_that_overflows_in_half_precision_is_fused() -> None:
    bench, layout, failed = overflowing(odd=False)

    result = repair.mend("fp16", layout, failed, bench, units_of(layout.graph), Findings({}, []))

    assert result.hop.failed is None
    assert [(mend.kind, mend.where) for mend in result.repair.mends] == [("fuse", ["node_normed"])]
    assert [node.op_type for node in result.layout.graph.graph.node].count("LayerNormalization") == 1
    assert result.repair.float_units == 0


def test_one_that_nothing_fuses_stays_in_floats() -> None:
    bench, layout, failed = overflowing(odd=True)
    parts = [Unit(node.name, (node.name,)) for node in layout.graph.graph.node]

    result = repair.mend("fp16", layout, failed, bench, parts, Findings({}, []))

    assert result.hop.failed is None
    (mend,) = result.repair.mends
    assert mend.kind == "keep"
    assert "node_square" in mend.where
    assert len(mend.where) <= 5
    assert result.repair.builds <= repair.most_builds(len(parts))


def test_the_ranges_of_values_that_were_fused_away_go_with_them() -> None:
    model = faulty.normed()
    layout = Layout(model, frozenset(), {"square": (0.0, 1.0), "normed": (-1.0, 1.0), "image": (-3.0, 3.0)})

    proposed = repair._fuse(layout, Findings({}, []))

    assert proposed is not None
    assert proposed.layout.ranges.keys() == {"normed", "image"}


def test_a_fused_normalization_computes_the_same() -> None:
    model = faulty.normed(loud=3.0)

    fused, names = layernorm.fuse(model)

    onnx.checker.check_model(fused, full_check=True)
    assert names == ["node_normed"]
    assert held(fused, model).sqnr_db > 100


# What cannot be mended, and how long it takes to know


def test_a_fault_that_is_no_matter_of_precision_is_not_mended_and_nothing_is_changed(tmp_path: Path) -> None:
    layout = net_of(faulty.chain(3), tmp_path)

    def bend(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in ("head.bias", "head.bias_quantized"):
                array = weights_of(model)[tensor.name]
                tensor.CopyFrom(numpy_helper.from_array(-3 * array, tensor.name))

    result = mended(Int8(tmp_path, layout.graph, bend), layout)

    assert result.hop.failed is not None
    assert result.repair.mends == []
    assert result.layout == layout
    assert result.repair.builds <= 3


@dataclass
class Simulated:
    """A bench on which every unit in ``bad`` must be kept."""

    graph: onnx.ModelProto
    bad: frozenset[str]
    builds: int = 0

    def build(self, layout: Layout) -> onnx.ModelProto:
        self.builds += 1
        made = onnx.ModelProto()
        made.producer_name = ",".join(sorted(self.bad - layout.keep_float))
        return made

    def measure(self, model: onnx.ModelProto) -> Hop:
        left = model.producer_name
        return Hop(name="hop", frames=1, sqnr_db=-len(left), limit_db=0, failed=left or None)


def in_a_row(count: int) -> tuple[onnx.ModelProto, Sequence[Unit]]:
    net = faulty.Net()
    value = net.add("GlobalAveragePool", ["image"], "u0")
    for number in range(1, count):
        value = net.add("Relu", [value], f"u{number}")
    net.add("Flatten", [value], "scores")
    model = net.model(3)
    return model, [Unit(node.name, (node.name,)) for node in model.graph.node[:count]]


@settings(max_examples=40)
@given(st.data(), st.integers(1, 200))
def test_the_bound_on_builds_holds_and_one_fault_is_found_exactly(data: st.DataObject, count: int) -> None:
    graph, units = in_a_row(count)
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    bench = Simulated(graph, frozenset(units[i].name for i in bad))

    result = repair.mend(
        "v",
        Layout(graph, frozenset(), {}),
        Hop(name="h", frames=1, sqnr_db=-99, limit_db=0, failed="x"),
        bench,
        units,
        Findings({}, []),
    )

    assert bench.builds <= 2 * math.log2(count) + 5
    assert result.hop.failed is None
    kept = {index for index, unit in enumerate(units) if unit.name in result.layout.keep_float}
    assert bad <= kept <= set(range(min(bad), max(bad) + 1))


def test_known_errors_find_two_faults_that_lie_far_apart_without_what_is_between() -> None:
    graph, units = in_a_row(100)
    bad = {"node_u10", "node_u80"}
    errors = {f"u{n}": 40.0 if n < 10 else 12.0 if n < 80 else 3.0 for n in range(100)}

    result = repair.mend(
        "v",
        Layout(graph, frozenset(), {}),
        Hop(name="h", frames=1, sqnr_db=-99, limit_db=0, failed="x"),
        Simulated(graph, frozenset(bad)),
        units,
        Findings(errors, []),
    )

    assert result.hop.failed is None
    assert bad <= result.layout.keep_float
    assert len(result.layout.keep_float) <= 4
