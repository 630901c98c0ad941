"""What --max-drop, --max-latency and --resume take, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.search import budget
from compiler.search.budget import Budget
from skerry.disk import Disk
from skerry.errors import UsageError


@pytest.mark.parametrize(("text", "points"), [("0.5", 0.5), (" 1 ", 1.0), (".25", 0.25), ("100", 100.0)])
def test_a_drop_is_points(text: str, points: float) -> None:
    assert budget.parse_drop(text) == points


@pytest.mark.parametrize("text", ["", "0", "-1", "0.5%", "101", "nan", "inf", "1e-3", "half", "0,5", "٣"])
def test_what_is_no_drop_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-drop .*expected points of accuracy above 0, for example 0\.5"):
        budget.parse_drop(text)


@pytest.mark.parametrize(("text", "ms"), [("5ms", 5.0), ("5 ms", 5.0), ("800us", 0.8), ("0.5s", 500.0), (".5ms", 0.5)])
def test_a_latency_has_a_unit(text: str, ms: float) -> None:
    assert budget.parse_latency(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "5", "5m", "ms", "0ms", "-5ms", "5ms!", "5 fps", "1e3ms", "infms"])
def test_what_is_no_latency_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-latency .*expected a time with its unit, for example 5ms"):
        budget.parse_latency(text)


def test_points_need_labelled_samples() -> None:
    with pytest.raises(UsageError, match="needs labelled samples to count on: name their folder with --eval"):
        budget.budget("0.5", None, labelled=False)
    assert budget.budget("0.5", "5ms", labelled=True) == Budget(0.5, 5.0)
    assert budget.budget(None, "5ms", labelled=False) == Budget(None, 5.0)
    assert budget.budget(None, None, labelled=True).aim == budget.DEFAULT_MAX_DROP


def test_a_latency_is_not_promised_for_another_machine() -> None:
    reasons = {"int8-rr": None, "int8-dot": "is for aarch64, this is x86_64"}

    refused = budget.refused_latencies(Budget(max_latency_ms=5.0), reasons)

    assert refused.keys() == {"int8-dot"}
    assert "is for aarch64" in refused["int8-dot"]
    assert "a guess" in refused["int8-dot"]
    assert budget.refused_latencies(Budget(max_drop=1.0), reasons) == {}


def test_a_latency_that_no_variant_can_be_held_to_is_refused_whole() -> None:
    with pytest.raises(UsageError, match=r"5ms cannot be measured here for any variant .*int8-dot: is for aarch64"):
        budget.refused_latencies(Budget(max_latency_ms=5.0), {"int8-dot": "is for aarch64"})
    assert budget.refused_latencies(Budget(max_latency_ms=5.0), {}) == {}  # fp32 alone, measured here or not asked for


def test_resume_takes_up_the_last_command(tmp_path: Path) -> None:
    arguments = ["net.py:build", "--calib", "photos/", "--max-latency", "5ms"]
    budget.remember(tmp_path / "work", tmp_path, arguments, Disk())

    assert budget.recall(tmp_path / "work", tmp_path) == arguments
    with pytest.raises(UsageError, match=f"was begun in {tmp_path}; run it from there"):
        budget.recall(tmp_path / "work", tmp_path.parent)


@pytest.mark.parametrize("raw", [None, b"{}", b"not json"])
def test_without_a_last_command_there_is_nothing_to_resume(tmp_path: Path, raw: bytes | None) -> None:
    if raw is not None:
        (tmp_path / "last.json").write_bytes(raw)

    with pytest.raises(UsageError, match="nothing to resume"):
        budget.recall(tmp_path, tmp_path)


def test_resume_takes_nothing_but_the_folder_of_the_work() -> None:
    defaults = {"resume": False, "work": None, "max_drop": None, "calib": []}

    budget.check_alone({**defaults, "resume": True, "work": Path("w")}, defaults)
    with pytest.raises(UsageError, match=r"without max_drop, calib; for another, give the command whole"):
        budget.check_alone({**defaults, "resume": True, "max_drop": "3", "calib": [Path("photos")]}, defaults)
