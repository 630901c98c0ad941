"""Plans: kept whole, held to their inputs, and replayed to the same bytes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from compiler import plan as plans
from compiler.plan import Decision, Plan
from skerry.disk import Disk
from skerry.errors import PlanError

INPUTS = {"code": "1" * 64, "weights": "2" * 64, "recipe": "3" * 64, "calibration": "4" * 64}
TOOLS = {"onnxruntime": "1.31.1", "numpy": "2.4.6"}
PLAN = Plan(
    inputs=INPUTS,
    tools=TOOLS,
    variants=[
        Decision(id="fp32", backend="onnxrt", precision="fp32", layout="float"),
        Decision(
            id="int8-rr",
            backend="onnxrt",
            precision="int8",
            layout="u8s8-7bit",
            calibration="percentile",
            keep_float=["node_conv2d_3", "node_linear"],
            digest="5" * 64,
        ),
    ],
    left_out={"int8-vnni": "quantizing does not pay here"},
    searched={"eval": "6" * 64},
)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    plans.write(PLAN, tmp_path / "plan.json", Disk())

    assert plans.read(tmp_path / "plan.json") == PLAN


def test_the_same_plan_is_the_same_bytes(tmp_path: Path) -> None:
    other = msgspec.structs.replace(PLAN, inputs=dict(reversed(INPUTS.items())))
    plans.write(PLAN, tmp_path / "one.json", Disk())
    plans.write(other, tmp_path / "two.json", Disk())

    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_plan_fits_what_it_was_made_for() -> None:
    plans.check(PLAN, INPUTS, TOOLS)
    plans.check_variants(PLAN, ["fp32", "int8-rr", "int8-vnni"])
    plans.check_bytes(PLAN, {"int8-rr": "5" * 64, "fp32": "9" * 64})
    assert PLAN.decision("int8-rr") is PLAN.variants[1]
    assert PLAN.decision("int8-vnni") is None


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_an_input_that_differs_is_named_with_both_digests(name: str) -> None:
    with pytest.raises(
        PlanError, match=rf"other inputs: {name} \({INPUTS[name][:12]} in the plan, 777777777777 here\)"
    ):
        plans.check(PLAN, {**INPUTS, name: "7" * 64}, TOOLS)


def test_an_input_that_is_new_or_gone_is_named_too() -> None:
    without = {name: digest for name, digest in INPUTS.items() if name != "weights"}

    with pytest.raises(PlanError, match=r"weights \(222222222222 in the plan, none here\)"):
        plans.check(PLAN, without, TOOLS)
    with pytest.raises(PlanError, match=r"pruning \(none in the plan, 888888888888 here\)"):
        plans.check(PLAN, {**INPUTS, "pruning": "8" * 64}, TOOLS)


def test_other_tools_are_named() -> None:
    with pytest.raises(PlanError, match=r"other tools.*onnxruntime 1\.31\.1 in the plan, 1\.32\.0 here"):
        plans.check(PLAN, INPUTS, {**TOOLS, "onnxruntime": "1.32.0"})


def test_a_target_that_the_plan_does_not_know_is_named() -> None:
    with pytest.raises(PlanError, match="decides nothing for int8-arm, only for fp32, int8-rr, int8-vnni"):
        plans.check_variants(PLAN, ["fp32", "int8-arm"])


def test_other_bytes_are_refused() -> None:
    with pytest.raises(PlanError, match="int8-rr came out as 666666666666, the plan has 555555555555"):
        plans.check_bytes(PLAN, {"int8-rr": "6" * 64})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b'{"format": "skerry.plan/2", "inputs": {}, "tools": {}, "variants": []}',
        b'{"inputs": {"code": "short"}, "tools": {}, "variants": []}',
        b'{"inputs": {}, "tools": {}, "variants": [], "surprise": 1}',
    ],
)
def test_what_is_no_plan_is_refused_in_words(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(raw)

    with pytest.raises(PlanError, match=r"plan\.json.*expected a plan in the format skerry\.plan/1"):
        plans.read(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="No such file"):
        plans.read(tmp_path / "gone.json")
