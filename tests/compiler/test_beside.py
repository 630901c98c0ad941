"""Offers: a variant's file on another runtime ships where it is measured faster, and ends nothing where it is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from compiler.beside import Offers
from compiler.candidate import Candidate, Work
from compiler.evaluation.compare import Hop
from compiler.job import Job
from compiler.passes import MODEL, Passes
from compiler.plan import Decision, Plan
from compiler.targets import target
from compiler.targets.target import VariantPlan
from compiler.variants import Variant, Variants
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.execution.backend import available
from skerry.manifest import DeviceFacts, Requires

needs_openvino = pytest.mark.skipif("openvino" not in available(), reason="OpenVINO is not installed")

FP32 = VariantPlan(id="fp32", backend="onnxrt", precision="fp32", source="a test")
TWIN = VariantPlan(id="int8", backend="onnxrt", precision="int8", layout="u8s8", source="a test")
OFFER = VariantPlan(id="int8-ov", backend="openvino", precision="int8", layout="u8s8", source="a test", beside="int8")
SAME = msgspec.structs.replace(OFFER, id="int8-again", backend="onnxrt")  # its own runtime: never faster
ANYWHERE = Requires()
HERE = DeviceFacts(arch="x86_64", cpu=[], backends=["onnxrt", "openvino"])
GOOD = Hop(name="ONNX → int8-ov", frames=1, sqnr_db=40.0, limit_db=15.0)


@dataclass
class Heard:
    """What a user is told."""

    lines: list[str] = field(default_factory=list)

    def said(self, text: str) -> None:
        self.lines.append(text)

    def detail(self, _text: str) -> None: ...
    def hop(self, _hop: Hop) -> None: ...
    def began(self, _name: str) -> None: ...
    def ended(self, _name: str, _seconds: float | None) -> None: ...


@dataclass
class Bench:
    """A compilation that has come as far as its offers: fp32 and an INT8 twin ship."""

    folder: Path
    model: onnx.ModelProto = field(default_factory=tiny.model)
    heard: Heard = field(default_factory=Heard)

    def offers(
        self, plan: VariantPlan, requires: Requires = ANYWHERE, hops: list[Hop] | None = None, **job: Any
    ) -> tuple[Offers, list[str]]:
        """The offers after ``plan`` was one, and the ids of what ships."""
        fp32, int8 = self.made("fp32", tiny.model()), self.made("int8", self.model)
        wanted = [(FP32, ANYWHERE), (TWIN, ANYWHERE), (plan, requires)]
        source: Any = SimpleNamespace(recipe=None)
        asked: Any = {"source": source, "samples": None, "facts": HERE, "key": None, "out": None, **job}
        clock, disk = SystemClock(), Disk()
        work = Work(self.folder / "work", disk, clock, self.heard)
        nothing: Any = None
        passes = Passes(Job(plans=wanted, **asked), work, nothing, disk, self.heard, 1)
        variants = Variants(passes, nothing, fp32, clock, lambda _plan, _path: None)
        offers = Offers(variants, lambda _offer: [GOOD] if hops is None else hops, [])
        found = offers.beside([Variant(FP32, ANYWHERE, fp32, here=True), Variant(TWIN, ANYWHERE, int8, here=True)])
        return offers, [variant.plan.id for variant in found]

    def made(self, name: str, model: onnx.ModelProto) -> Candidate:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / MODEL).write_bytes(model.SerializeToString())
        return Candidate(name, folder, name, (), {})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@needs_openvino
def test_an_offer_is_the_very_file_and_ships_behind_the_one_it_stands_beside(bench: Bench) -> None:
    offers, ships = bench.offers(OFFER, keep_slower=True)

    assert ships == ["fp32", "int8", "int8-ov"]
    (race,) = offers.races
    assert (race.variant, race.beside, race.backend) == ("int8-ov", "int8", "openvino")
    assert 0 < race.times <= race.times_at_most
    assert offers.held == [GOOD]
    assert "the same file on openvino takes" in bench.heard.lines[-1]


def test_what_is_not_faster_is_left_out_with_its_time(bench: Bench) -> None:
    offers, ships = bench.offers(SAME)

    assert ships == ["fp32", "int8"]
    assert not offers.races
    why = offers.variants.left_out["int8-again"]
    if "the machine is too busy to time on" not in why:  # other tests may keep it so: then nobody can tell
        assert "on onnxrt the same file takes" in why
        assert "of int8's time" in bench.heard.lines[-1]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"backends": ["onnxrt"]}, "OpenVINO is not installed here (pip install 'skerry[openvino]')"),
        ({"arch": "aarch64"}, "needs x86_64, this is aarch64"),
    ],
)
def test_what_cannot_be_measured_here_is_not_made_and_not_missed(bench: Bench, facts: Any, why: str) -> None:
    here = msgspec.structs.replace(HERE, **facts)

    offers, ships = bench.offers(OFFER, Requires(arch=["x86_64"]), facts=here, keep_slower=True)

    assert ships == ["fp32", "int8"]
    assert offers.variants.left_out["int8-ov"] == f"{why}; it ships only where it was measured, and won"


@needs_openvino
def test_one_that_does_not_hold_the_reference_is_left_out_and_ends_nothing(bench: Bench) -> None:
    bad = msgspec.structs.replace(GOOD, failed="outputs differ from torch: 3.0 dB, at least 15 wanted")

    offers, ships = bench.offers(OFFER, hops=[GOOD, bad], keep_slower=True)

    assert ships == ["fp32", "int8"]
    assert not offers.races
    assert not offers.held
    assert offers.variants.left_out["int8-ov"].endswith("3.0 dB, at least 15 wanted")


@needs_openvino
def test_one_that_its_runtime_cannot_load_is_left_out_and_ends_nothing(bench: Bench) -> None:
    """SampleOp is ONNX Runtime's own."""
    bench.model = alone("SampleOp", domain="com.microsoft")

    offers, ships = bench.offers(OFFER, keep_slower=True)

    assert ships == ["fp32", "int8"]
    assert offers.variants.left_out["int8-ov"].startswith("openvino does not run it: model.onnx does not load")


def alone(op: str, domain: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], domain=domain)],
        "alone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(("decided", "ships"), [(["int8"], ["fp32", "int8"]), (["int8", "int8-ov"], ["int8-ov"])])
def test_a_plan_decides_whether_it_ships_whatever_is_installed(
    bench: Bench, decided: list[str], ships: list[str]
) -> None:
    decisions = [Decision(id=name, backend="", precision="", layout="") for name in decided]
    facts = msgspec.structs.replace(HERE, backends=["onnxrt"])

    _, found = bench.offers(OFFER, replay=Plan(inputs={}, tools={}, variants=decisions), facts=facts)

    assert found[-len(ships) :] == ships


def test_a_target_may_only_offer_what_it_builds() -> None:
    with pytest.raises(ValueError, match="int8-ov stands beside 'int8', which is no variant before it"):
        target.Target(description="d", arch=["x86_64"], variant=[OFFER, TWIN])
