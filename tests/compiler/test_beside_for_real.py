"""Offers through the real command and to the real agent: where OpenVINO is installed, and where it is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_agent import LiveAgent
from shell import Said, Shell, photograph, repository, save_weights

from skerry.bundle import read_file, read_manifest
from skerry.execution.backend import available
from skerry.manifest import Manifest

pytestmark = pytest.mark.slow
needs_openvino = pytest.mark.skipif("openvino" not in available(), reason="OpenVINO is not installed")


@dataclass(frozen=True)
class Hiding(Shell):
    """A shell in whose processes OpenVINO cannot be imported."""

    folder: Path = Path()

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.folder)}


@dataclass(frozen=True)
class Desk:
    """A stranger's repository, compiled once; OpenVINO can be taken away."""

    folder: Path
    shell: Shell

    def compile(self, out: str, *more: object, work: str = "work", hidden: bool = False) -> Said:
        words = ["--calib", self.folder / "photos", "--target", "x86-64", "--work", self.folder / work]
        command = ["compile", self.folder / "colours", *words, "-o", self.folder / out, *more]
        return (self.without() if hidden else self.shell).skerry(*command)

    def without(self) -> Shell:
        """A shell of somebody who has not installed it."""
        return Hiding(self.shell.home, self.hiding)

    @property
    def hiding(self) -> Path:
        """A folder for PYTHONPATH in which it cannot be imported."""
        folder = self.folder / "hiding"
        folder.mkdir(exist_ok=True)
        (folder / "openvino.py").write_text("raise ImportError('not installed')\n")
        return folder

    def evidence(self, out: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_file(self.folder / out, "evidence/compile.json"))
        return found

    def variants(self, out: str) -> list[str]:
        return [variant.id for variant in Manifest.parse(read_manifest(self.folder / out)[0]).variants]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    shell, root = Shell(folder / "home"), repository("colours", folder / "colours")
    save_weights(shell, root, root / "w.pth")
    photograph(folder / "photos", 140)
    desk = Desk(folder, shell)
    said = desk.compile("kept.skb", "--keep-slower")
    assert said.code == 0, said.err
    return desk


@needs_openvino
def test_it_ships_beyond_doubt_faster_or_not_at_all(desk: Desk) -> None:
    said = desk.compile("net.skb")

    if said.code:  # other work keeps this machine busy
        assert "int8-rr: the machine is too busy to time on" in said.err
        return
    evidence, races = desk.evidence("net.skb"), desk.evidence("net.skb")["races"]
    if "int8-rr-ov" in desk.variants("net.skb"):
        assert [race["variant"] for race in races] == ["int8-rr-ov"]
        assert races[0]["times_at_most"] < 1
        assert f"int8-rr-ov: the same file on openvino takes {races[0]['times']:.2f} of int8-rr's time" in said.out
        assert "ONNX → int8-rr-ov" in [hop["name"] for hop in evidence["hops"]]
    else:
        assert not races
        assert "int8-rr-ov is left out: " in said.out
        assert "int8-rr-ov" in evidence["left_out"]


@needs_openvino
def test_every_page_names_its_runtime(desk: Desk) -> None:
    """The bundle that has it whatever its time."""
    assert desk.variants("kept.skb") == ["fp32", "int8-rr", "int8-rr-ov"]
    said = desk.shell.skerry("inspect", desk.folder / "kept.skb").out
    assert "variant    int8-rr-ov: int8 on openvino" in said
    assert "beside     int8-rr-ov: int8-rr's file on openvino" in said
    assert "layers     int8-rr-ov: " in said
    page = read_file(desk.folder / "kept.skb", "evidence/report.html").decode()
    assert "int8-rr-ov is the file of int8-rr on openvino" in page
    words = ["--data", desk.folder / "photos", "--seconds", 1, "--variant-a", "int8-rr", "--variant-b", "int8-rr-ov"]
    compared = desk.shell.skerry("compare", desk.folder / "kept.skb", desk.folder / "kept.skb", *words)
    assert compared.code == 0, compared.err
    assert "int8-rr-ov, int8 on openvino" in compared.out


def test_whoever_has_not_installed_it_is_told_in_one_line_and_gets_the_rest(desk: Desk) -> None:
    said = desk.compile("plain.skb", "--keep-slower", hidden=True)

    assert said.code == 0, said.err
    assert desk.variants("plain.skb") == ["fp32", "int8-rr"]
    assert "pip install 'skerry[openvino]'" in said.line("int8-rr-ov")


@needs_openvino
def test_a_plan_builds_it_where_it_is_not_installed(desk: Desk) -> None:
    said = desk.compile("again.skb", "--plan", desk.folder / "kept.skb", work="elsewhere", hidden=True)

    assert said.code == 0, said.err
    assert read_manifest(desk.folder / "again.skb") == read_manifest(desk.folder / "kept.skb")
    assert "int8-rr-ov" in desk.evidence("again.skb")["unmeasured"]


@needs_openvino
@pytest.mark.parametrize("hidden", [False, True])
def test_a_device_proves_what_it_can_run_takes_the_fastest_and_says_what_it_passes_over(
    desk: Desk, tmp_path: Path, *, hidden: bool
) -> None:
    environment = {"PYTHONPATH": str(desk.hiding)} if hidden else {}
    agent = LiveAgent(tmp_path, desk.folder / "photos")
    config = (tmp_path / "agent.toml").read_text()
    (tmp_path / "agent.toml").write_text(config.replace(str(tmp_path / "trusted.pub"), str(desk.shell.public_key)))
    with agent.start("--model", str(desk.folder / "kept.skb"), **environment):
        status = agent.wait(lambda s: s["record"].get("active"))

    times = {proof["variant"]: proof["time_ms"] for proof in status["proofs"]}
    assert set(times) == {"fp32", "int8-rr"} | (set() if hidden else {"int8-rr-ov"})
    assert status["record"]["active"]["variant"] == min(times, key=times.__getitem__)
    passed_over = "variant int8-rr-ov is passed over: it needs backend openvino, here: onnxrt"
    assert (passed_over in agent.output()) is hidden
