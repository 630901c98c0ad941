"""Limits, through the real command: what a search ships and refuses, what a plan builds again, what does not pay."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import Said, Shell

from skerry.bundle import read_file, read_manifest
from skerry.manifest import Manifest

pytestmark = pytest.mark.slow

# It sees which of red, green and blue is brightest, and is wide enough that INT8 pays on any x86-64.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        width = [3, 64, 64, 64]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(width, width[1:]))
        self.head = nn.Linear(width[-1], 3)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(0.05)
                for out in range(width[-1]):
                    layer.weight[out, out % layer.in_channels, 1, 1] += 1.0
            for out in range(width[-1]):
                self.head.weight[:, out] = torch.eye(3)[out % 3]

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))

def build():
    return Net()
"""
# Nothing to multiply, much to do: there INT8 cannot pay.
THIN = (
    NET.replace("[3, 64, 64, 64]", "[3, 4]")
    .replace("nn.Linear(64", "nn.Linear(4")
    .replace("        return", "        for _ in range(24):\n            x = torch.sin(x) + 1.0\n        return")
)
# One channel three thousand times as large as the others, and undone behind: INT8 sees nothing but that one.
LOUD = NET.replace(
    "            for out in range(width[-1]):\n                self.head",
    "            self.layers[1].weight[3].mul_(3e3)\n            self.layers[2].weight[:, 3].div_(3e3)\n"
    "            for out in range(width[-1]):\n                self.head",
)


@dataclass(frozen=True)
class Desk:
    """A folder in which somebody types."""

    folder: Path
    shell: Shell

    def types(self, command: str) -> Said:
        return self.shell.skerry(*command.split(), cwd=self.folder)

    def evidence(self, bundle: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_file(self.folder / bundle, "evidence/compile.json"))
        return found

    def manifest(self, bundle: str) -> Manifest:
        return Manifest.parse(read_manifest(self.folder / bundle)[0])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    for name, code in (("wide", NET), ("thin", THIN), ("loud", LOUD)):
        (folder / name).mkdir()
        (folder / name / "net.py").write_text(code)
        (folder / name / "labels.txt").write_text("red\ngreen\nblue\n")
    random = np.random.default_rng(5)
    photographed(folder / "calib", 140, random)
    for number, label in enumerate(("red", "green", "blue")):
        photographed(folder / "eval" / label, 120, random, number)
    return Desk(folder, Shell(folder / "home"))


def photographed(folder: Path, count: int, random: np.random.Generator, channel: int | None = None) -> None:
    """Noise; with a channel, that one is brighter."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 120, (64, 64, 3))
        pixels[..., number % 3 if channel is None else channel] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


COMPILE = "compile {}/net.py:build --labels {}/labels.txt --input 1x3x64x64 --calib calib --target x86-64 --work work"


@pytest.fixture(scope="module")
def searched(desk: Desk) -> Said:
    """One compilation with a search."""
    command = COMPILE.format("wide", "wide")
    return desk.types(f"{command} --eval eval --max-drop 20 -o searched.skb")


def test_a_search_says_what_it_measured_on_samples_it_never_saw(desk: Desk, searched: Said) -> None:
    assert searched.code == 0, searched.err
    accuracy = desk.evidence("searched.skb")["accuracy"][0]
    assert accuracy["variant"] == "int8-rr"
    assert accuracy["drop"] <= accuracy["drop_at_most"] <= accuracy["budget"] == 20
    assert 0 < accuracy["samples"] < 360
    points = [point for point in desk.evidence("searched.skb")["search"] if point["variant"] == "int8-rr"]
    assert sum(point["chosen"] for point in points) == 1
    assert "samples that the search never saw" in searched.out


def test_a_plan_builds_the_same_files_without_searching(desk: Desk, searched: Said) -> None:
    assert searched.code == 0
    command = COMPILE.format("wide", "wide").replace("--work work", "--work elsewhere")

    again = desk.types(f"{command} --plan searched.skb -o again.skb")

    assert again.code == 0, again.err
    assert (desk.folder / "elsewhere").is_dir()
    assert not list((desk.folder / "elsewhere").glob("candidate-*"))
    assert read_manifest(desk.folder / "again.skb") == read_manifest(desk.folder / "searched.skb")


def test_a_plan_for_other_inputs_is_refused(desk: Desk, searched: Said) -> None:
    assert searched.code == 0
    command = COMPILE.format("thin", "thin")

    refused = desk.types(f"{command} --plan searched.skb -o never.skb")

    assert refused.code == 1
    assert "the plan was made for other inputs: code" in refused.err
    assert not (desk.folder / "never.skb").exists()


def test_a_drop_that_cannot_be_shown_is_refused_with_how_many_it_takes(desk: Desk, searched: Said) -> None:
    assert searched.code == 0

    refused = desk.types(f"{COMPILE.format('wide', 'wide')} --eval eval --max-drop 0.1 -o never.skb")

    assert refused.code == 1
    assert "cannot be shown, needs" in refused.err
    assert not (desk.folder / "never.skb").exists()


def test_labels_in_another_order_are_refused_before_anything_is_searched(desk: Desk) -> None:
    (desk.folder / "wrong.txt").write_text("green\nred\nblue\n")
    command = COMPILE.format("wide", "wide").replace("wide/labels.txt", "wrong.txt")

    refused = desk.types(f"{command} --eval eval --max-drop 20 -o wrong.skb")

    assert refused.code == 1
    assert "'green' are called 'red', 'red' are called 'green'" in refused.err
    assert not (desk.folder / "wrong.skb").exists()


def test_what_does_not_pay_is_left_out_and_said(desk: Desk) -> None:
    said = desk.types(f"{COMPILE.format('thin', 'thin')} --max-latency 1s -o thin.skb")

    if "the machine is too busy to time on" in said.err:  # other work keeps it so
        assert not (desk.folder / "thin.skb").exists()
        return
    assert said.code == 0, said.err
    assert said.out.count("int8-rr: quantizing does not pay here") == 1
    assert "int8-rr is left out: quantizing does not pay here" in said.out.replace("\n", " ")
    assert "int8-rr" not in [variant.id for variant in desk.manifest("thin.skb").variants]
    assert "of fp32's time" in desk.evidence("thin.skb")["left_out"]["int8-rr"]


def test_what_is_mended_is_counted_anew_and_held_anew(desk: Desk) -> None:
    command = COMPILE.format("loud", "loud").replace("--target x86-64", "--target arm64") + " --eval eval --max-drop 20"
    broken = desk.types(f"{command} --force -o broken.skb")

    said = desk.types(f"{command} --repair -o mended.skb")

    assert broken.code == 0, broken.err
    assert any("points" in why for why in desk.evidence("broken.skb")["forced"])
    assert said.code == 0, said.err
    (accuracy,) = desk.evidence("mended.skb")["accuracy"]
    assert accuracy["variant"] == "int8-dotprod"
    assert accuracy["drop_at_most"] <= 20
    assert [repair["variant"] for repair in desk.evidence("mended.skb")["repairs"]] == ["int8-dotprod"]
    again = desk.types(f"{command} --plan mended.skb -o mends.skb")
    assert again.code == 0, again.err
    assert desk.evidence("mends.skb")["accuracy"] == [accuracy]


def test_a_latency_for_another_machine_is_refused(desk: Desk) -> None:
    command = COMPILE.format("wide", "wide").replace("--target x86-64", "--target arm64")

    refused = desk.types(f"{command} --max-latency 5ms -o never.skb")

    assert refused.code == 2
    assert "cannot be measured here" in refused.err


def test_one_command_builds_for_cpus_and_gpus(desk: Desk) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="the extra tensorrt-rtx is not installed")
    targets = "--target rtx-sm86 --target jetson-orin-nano@jp6.2 --target arm64"

    said = desk.types(f"{COMPILE.format('wide', 'wide')} {targets} --keep-slower -o many.skb")

    assert said.code == 0, said.err
    found = {variant.id: variant for variant in desk.manifest("many.skb").variants}
    wanted = {"fp32", "int8-rr", "int8-dotprod", "rtx-sm86-fp16", "rtx-sm86-int8", "orin-fp16", "orin-int8"}
    assert set(found) - {"int8-rr-ov"} == wanted
    assert found["rtx-sm86-int8"].model.endswith("model.engine")
    assert found["orin-int8"].model.endswith("model.onnx")
    assert any(path.endswith("build.json") for path in found["orin-int8"].files)
    assert {"rtx-sm86-int8", "orin-int8", "int8-dotprod"} <= set(desk.evidence("many.skb")["unmeasured"])


def test_samples_that_do_not_fit_are_refused_before_anything_is_built(desk: Desk) -> None:
    (desk.folder / "wrong" / "purple").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(desk.folder / "wrong" / "purple" / "a.png")

    said = desk.types(f"{COMPILE.format('wide', 'wide')} --eval wrong --max-drop 20 -o x.skb")

    assert "the model knows no class purple" in said.refusal()
    assert "export" not in said.out


def test_a_latency_that_nothing_here_can_show_is_refused_before_the_model_is_loaded(desk: Desk) -> None:
    command = COMPILE.format("wide", "wide").replace("x86-64", "jetson-orin-nano@jp6.2")

    said = desk.types(f"{command} --max-latency 5ms -o x.skb")

    assert said.code == 2
    assert "cannot be measured here for any variant" in said.err
    assert "load" not in said.out


def test_a_model_that_is_sure_of_nothing_is_refused_before_anything_is_built(desk: Desk) -> None:
    (desk.folder / "unsure").mkdir()
    unsure = NET.replace("self.head.weight[:, out] = torch.eye(3)[out % 3]", "self.head.weight.zero_()")
    (desk.folder / "unsure" / "net.py").write_text(unsure)

    said = desk.types(f"{COMPILE.format('unsure', 'wide')} -o x.skb")

    assert "the model is sure of nothing" in said.refusal()
    assert "export" not in said.out


def test_where_nothing_can_be_written_is_said_before_the_work(desk: Desk) -> None:
    """Nobody writes to /proc/self, root included."""
    said = desk.types(f"{COMPILE.format('wide', 'wide')} -o /proc/self/x.skb")

    assert said.code == 2
    assert "/proc/self cannot be written to; name another place with -o" in said.err


def test_labels_that_are_not_as_many_as_the_scores_are_refused_before_anything_is_built(desk: Desk) -> None:
    (desk.folder / "two.txt").write_text("red\n\ngreen\n")
    command = COMPILE.format("wide", "wide").replace("wide/labels.txt", "two.txt")

    said = desk.types(f"{command} -o x.skb")

    assert "2 labels, and the model gives 3 scores" in said.refusal()
    assert "reference" not in said.out
