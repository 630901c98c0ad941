"""The work directory: a pass that ended is never run again, and one that did not leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from passes import Passes

from compiler.candidate import TOOLS, Candidate, Step, Work, file_digests, tool_versions
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import CompileError

Make = Callable[[Path], Mapping[str, Any]]


def work_in(root: Path) -> tuple[Work, Passes]:
    """A work directory as one process opens it."""
    log = Passes()
    return Work(root, Disk(), SystemClock(), log), log


def writes(text: str) -> Make:
    def make(folder: Path) -> Mapping[str, Any]:
        (folder / "model").write_text(text)
        return {"letters": len(text)}

    return make


def never(_folder: Path) -> Mapping[str, Any]:
    raise AssertionError("this pass was done before")


def test_a_pass_is_run_once_whoever_asks_again(tmp_path: Path) -> None:
    first, _ = work_in(tmp_path)
    made = first.cached("export", 1, [], {"opset": 20}, writes("graph"))

    second, log = work_in(tmp_path)
    found = second.cached("export", 1, [], {"opset": 20}, never)

    assert found == made
    assert found.facts == {"letters": 5}
    assert (found / "model").read_text() == "graph"
    assert log.resumed == ["export"]
    assert log.ran == []


@pytest.mark.parametrize("change", ["name", "version", "config", "input"])
def test_whatever_goes_into_a_pass_is_part_of_its_name(tmp_path: Path, change: str) -> None:
    work, log = work_in(tmp_path)
    before = work.cached("load", 1, [], "weights a", writes("a"))
    other = work.cached("load", 1, [], "weights b", writes("b"))
    work.cached("export", 1, [before], {"opset": 20}, writes("graph"))

    work.cached(
        "exports" if change == "name" else "export",
        2 if change == "version" else 1,
        [other if change == "input" else before],
        {"opset": 21 if change == "config" else 20},
        writes("another graph"),
    )

    assert log.resumed == []
    assert len(log.ran) == 4


def test_a_pass_is_named_by_what_its_inputs_hold_not_by_how_they_came_to_be(tmp_path: Path) -> None:
    work, log = work_in(tmp_path)
    before = work.cached("load", 1, [], "first way", writes("same"))
    again = work.cached("load", 1, [], "second way", writes("same"))
    assert before.digest == again.digest

    work.cached("export", 1, [before], None, writes("graph"))
    work.cached("export", 1, [again], None, never)

    assert log.resumed == ["export"]


def test_a_pass_without_files_is_named_by_what_went_into_it(tmp_path: Path) -> None:
    work, _ = work_in(tmp_path)

    one = work.cached("load", 1, [], "weights a", lambda _folder: {"outputs": 4})
    two = work.cached("load", 1, [], "weights b", lambda _folder: {"outputs": 4})

    assert one.digest != two.digest


def test_a_candidate_tells_its_history_in_order_and_once(tmp_path: Path) -> None:
    work, _ = work_in(tmp_path)
    load = work.cached("load", 1, [], None, lambda _folder: {})
    export = work.cached("export", 1, [load], None, writes("graph"))
    ranges = work.cached("calibrate", 1, [export, load], None, writes("ranges"))

    assert [step.name for step in ranges.history] == ["load", "export", "calibrate"]
    assert ranges.history[1] == Step("export", export.history[-1].key, export.digest)


@pytest.mark.parametrize("fault", ["changed", "removed", "added", "mark"])
def test_a_pass_whose_files_are_not_what_it_made_is_run_again(tmp_path: Path, fault: str) -> None:
    work, log = work_in(tmp_path)
    made = work.cached("export", 1, [], None, writes("graph"))
    match fault:
        case "changed":
            (made / "model").write_text("grapf")
        case "removed":
            (made / "model").unlink()
        case "added":
            (made / "more").write_text("?")
        case "mark":
            (made / "done.json").write_text('{"files"')

    again = work.cached("export", 1, [], None, writes("graph"))

    assert log.ran == ["export", "export"]
    assert again.digest == made.digest
    assert sorted(p.name for p in made.folder.iterdir()) == ["done.json", "model"]


def test_a_pass_that_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    work, log = work_in(tmp_path)

    def fails(folder: Path) -> Mapping[str, Any]:
        (folder / "model").write_text("half a gra")
        raise CompileError("torch stumbled")

    with pytest.raises(CompileError):
        work.cached("export", 1, [], None, fails)

    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    work.cached("export", 1, [], None, writes("graph"))
    assert log.ran == ["export"]


def test_what_a_killed_process_left_of_a_pass_is_no_pass(tmp_path: Path) -> None:
    work, log = work_in(tmp_path)
    made = work.cached("export", 1, [], None, writes("graph"))
    part = made.folder.with_name(made.folder.name + ".part")
    made.folder.rename(part)  # killed one step before the end
    (part / "more").write_text("half")

    again = work.cached("export", 1, [], None, writes("graph"))

    assert log.ran == ["export", "export"]
    assert file_digests(again.folder).keys() == {"model"}


def test_two_processes_may_run_the_same_pass_at_once(tmp_path: Path) -> None:
    slow, _ = work_in(tmp_path)
    quick, _ = work_in(tmp_path)

    other = threading.Thread(target=quick.cached, args=("export", 1, [], None, writes("graph")))

    def overtaken(folder: Path) -> Mapping[str, Any]:
        (folder / "model").write_text("gra")
        other.start()
        other.join(0.5)  # it may overtake, or wait for this one: either is fine
        (folder / "model").write_text("graph")
        return {"letters": 5}

    made = slow.cached("export", 1, [], None, overtaken)
    other.join()

    assert (made / "model").read_text() == "graph"
    assert file_digests(made.folder).keys() == {"model"}


def test_two_processes_never_share_a_scratch_folder(tmp_path: Path) -> None:
    """Else one signs what the other has put into its bundle meanwhile."""
    one, _ = work_in(tmp_path)
    two, _ = work_in(tmp_path)
    first = one.scratch("bundle")
    (first / "bundle.json").write_text("one")

    second = two.scratch("bundle")
    (second / "bundle.json").write_text("two")

    assert (first / "bundle.json").read_text() == "one"


def test_scratch_folders_begin_empty(tmp_path: Path) -> None:
    work, _ = work_in(tmp_path)
    (work.scratch("layers") / "old").write_text("?")

    assert list(work.scratch("layers").iterdir()) == []


def test_every_tool_that_may_change_a_byte_is_named_with_its_version() -> None:
    versions = tool_versions()

    assert versions.keys() == set(TOOLS)
    assert all(version[0].isdigit() for version in versions.values())


def test_a_candidate_is_paths_and_digests_and_nothing_else(tmp_path: Path) -> None:
    candidate = Candidate("export", tmp_path, "00", (), {})

    assert candidate / "model.onnx" == tmp_path / "model.onnx"
    with pytest.raises(AttributeError):
        candidate.digest = "01"
