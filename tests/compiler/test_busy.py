"""Timing on a machine that other programs keep busy: a verdict is right, or there is none and nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import burners
import numpy as np
import onnx
import pytest
from nets import Net
from passes import Passes as Watch

from compiler.candidate import Candidate, Work
from compiler.child.timing import take_turns
from compiler.evaluation.statistics import BUSY, time_ratio
from compiler.job import Job
from compiler.passes import MODEL, Passes
from compiler.search.measure import Measure, kept
from compiler.search.subject import time_in_turn, whole
from compiler.targets.target import VariantPlan
from compiler.variants import Variant, Variants
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import MachineBusy
from skerry.execution.backend import available
from skerry.execution.turns import Timed, Turns
from skerry.manifest import DeviceFacts, Requires

ROUNDS = 60
INT8 = VariantPlan(id="int8", backend="onnxrt", precision="int8", layout="u8s8", source="a test")
FP32 = VariantPlan(id="fp32", backend="onnxrt", precision="fp32", source="a test")


@pytest.fixture
def busy() -> Iterator[None]:
    with burners.on_one_core():
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return net(tmp_path_factory.mktemp("small"), 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return net(tmp_path_factory.mktemp("large"), 4)


def net(folder: Path, layers: int) -> Path:
    made = Net(1, 32, 32, 32)
    value = "image"
    for _ in range(layers):
        value = made.conv(value, 32, 32, 3)
    path = folder / MODEL
    onnx.save(made.model(value), path)
    return path


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("backend", [name for name in ("onnxrt", "openvino") if name in available()])
def test_of_two_models_of_clearly_different_work_the_verdict_is_right(backend: str, small: Path, large: Path) -> None:
    found = time_in_turn([small, large], ROUNDS, SystemClock(), [backend] * 2)

    assert found.had_processor < BUSY
    there = time_ratio(found.times_ms[0], found.times_ms[1], found.had_processor)
    back = time_ratio(found.times_ms[1], found.times_ms[0], found.had_processor)
    assert there.faster
    assert not back.faster
    assert not back.undecided


@pytest.mark.usefixtures("busy")
def test_two_equal_models_are_not_told_apart_and_nothing_is_kept(small: Path, tmp_path: Path) -> None:
    work, watch = working(tmp_path)
    subject = whole(small, work, SystemClock())

    found = Measure(work, Disk(), nothing()).beside(subject, small, small, 0.05)

    assert found is not None
    assert found.ratio.undecided
    assert watch.ran == []
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]


@pytest.mark.usefixtures("busy")
def test_what_is_clear_all_the_same_is_kept(small: Path, large: Path, tmp_path: Path) -> None:
    work, watch = working(tmp_path)
    subject = whole(large, work, SystemClock())

    once, again = (Measure(work, Disk(), nothing()).beside(subject, small, large, 0.05) for _ in range(2))

    assert (watch.ran, watch.resumed) == (["times"], ["times"])
    assert once == again


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_variant_that_nobody_can_tell_from_fp32_neither_ships_nor_is_left_out(small: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineBusy, match=r"int8: the machine is too busy .* --resume goes on here, or --keep-slower"):
        timed(small, small, tmp_path)

    kept = timed(small, small, tmp_path, keep_slower=True)
    assert kept is not None
    assert kept.time is not None


@pytest.mark.slow
@pytest.mark.usefixtures("busy")
def test_a_variant_that_is_clearly_faster_ships_and_one_that_is_clearly_slower_does_not(
    small: Path, large: Path, tmp_path: Path
) -> None:
    assert timed(small, large, tmp_path) is not None
    assert timed(large, small, tmp_path) is None


def timed(model: Path, fp32: Path, folder: Path, **job: Any) -> Variant | None:
    """What becomes of a variant beside ``fp32``."""
    work, _ = working(folder)
    tell = SimpleNamespace(said=lambda _text: None, detail=lambda _text: None)
    asked: Any = {"source": SimpleNamespace(recipe=None), "samples": None, "key": None, "out": None, **job}
    here = DeviceFacts(arch="x86_64", cpu=[], backends=["onnxrt"])
    plans = [(FP32, Requires()), (INT8, Requires())]
    passes = Passes(Job(plans=plans, facts=here, **asked), work, nothing(), Disk(), tell, 1)
    exported = Candidate("fp32", fp32.parent, "fp32", (), {})
    variants = Variants(passes, nothing(), exported, SystemClock(), lambda _plan, _path: None)
    return variants.timed(Variant(INT8, Requires(), Candidate("int8", model.parent, "int8", (), {}), here=True))


@pytest.mark.usefixtures("busy")
def test_the_childs_times_are_of_the_processor_too(small: Path) -> None:
    del small
    work = lambda: sum(range(10_000))  # noqa: E731 - on one thread: a matrix product has helpers that wait busily
    found = take_turns({"one": work, "ten": lambda: [work() for _ in range(10)]}, 0.2, str)

    assert found["had_processor"] < BUSY
    assert 5 < np.median(found["times_ms"]["ten"]) / np.median(found["times_ms"]["one"]) < 20


def test_waiting_is_not_counted_but_told() -> None:
    turns = Turns(1, SystemClock())
    for _ in range(3):
        turns.take(0, lambda: SystemClock().sleep(0.02))
    found = turns.timed()

    assert sum(found.times_ms[0]) < turns.seconds * 1e3 / 2
    assert found.had_processor < BUSY


@pytest.mark.parametrize(
    ("had", "asked", "ran"),
    [
        ([0.7, 0.7, 1.0], 3, ["times"]),  # busy a bit: it came quiet
        ([0.7, 0.7, 0.7, 1.0], 3, []),  # it did not in time
        ([0.2, 1.0], 1, []),
        ([1.0], 1, ["times"]),
    ],
)
def test_a_machine_that_is_busy_a_bit_is_tried_again(
    had: list[float], asked: int, ran: list[str], tmp_path: Path
) -> None:
    work, watch = working(tmp_path)
    times = [Timed([[1.0], [1.0]], share) for share in had]
    left = iter(times)

    found = kept(work, "times", {}, lambda: next(left), lambda one: one.had_processor >= BUSY)

    assert found == times[asked - 1]
    assert len(list(left)) == len(had) - asked
    assert watch.ran == ran


def working(folder: Path) -> tuple[Work, Watch]:
    watch = Watch()
    return Work(folder / "work", Disk(), SystemClock(), watch), watch


def nothing() -> Any:
    """What these tests do not look at."""
    return None
