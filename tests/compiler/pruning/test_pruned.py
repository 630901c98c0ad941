"""`--prune` through the real command: a small residual net on photos of clothing, cut, and held to the whole one."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
from shell import Said, Shell

from compiler import cli
from skerry.bundle import read_file, read_manifest
from skerry.errors import UsageError

CLOTHING = Path(os.environ.get("SKERRY_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "clothing"
CLASSES = ("dress", "hat", "shoes")
SIZE = 48

NET = """
import torch
from torch import nn
from torch.nn import functional

class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return functional.relu(self.two(self.one(x)) + self.around(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(Block(32, 64), Block(64, 128))
        self.head = nn.Linear(128, 3)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))

def build():
    return Net()
"""
# Much that no channel stands for, and that changes nothing: there pruning cannot pay.
SLOW = NET.replace(
    "        return self.head(",
    "        y = x.repeat(1, 8, 1, 1)\n"
    "        for _ in range(24):\n            y = torch.sin(y) + 1.0\n"
    "        x = x + 1e-9 * y[:, :3]\n        return self.head(",
)
RECIPE = f"""
format = "skerry.recipe/1"
name = "clothes"
labels = "labels.txt"

[model]
build = "net.py:build"
outputs = ["scores"]

[input]
shape = [1, 3, {SIZE}, {SIZE}]

[preprocess]
resize = "stretch"
mean = [0.5]
std = [0.25]

[postprocess]
kind = "classification"
scores = "scores"
"""
TRAIN = f"""
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from PIL import Image
from net import build
torch.manual_seed(0)
torch.set_num_threads(1)
net, classes = build(), {CLASSES!r}
files = [f for name in classes for f in sorted(Path(sys.argv[2]).glob(f"{{name}}/*.jpg"))]
images = np.stack([np.asarray(Image.open(f).convert("RGB").resize(({SIZE}, {SIZE}), 2), np.float32) for f in files])
images = torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25)
labels = torch.tensor([classes.index(f.parent.name) for f in files])
slow = torch.optim.AdamW(net.parameters(), 3e-3)
for epoch in range(4):
    order = torch.randperm(len(labels))
    for start in range(0, len(order) - 31, 32):
        some = order[start : start + 32]
        loss = torch.nn.functional.cross_entropy(net(images[some]), labels[some])
        slow.zero_grad()
        loss.backward()
        slow.step()
torch.save(net.eval().state_dict(), sys.argv[3])
"""


@dataclass(frozen=True)
class Desk:
    """A folder in which somebody types."""

    folder: Path
    shell: Shell

    def types(self, command: str) -> Said:
        return self.shell.skerry(*command.split(), cwd=self.folder, seconds=500)

    def evidence(self, bundle: str, file: str = "compile") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(read_file(self.folder / bundle, f"evidence/{file}.json"))
        return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A net, briefly trained on the half of the photos that is `train/`; a few of these lie in `eval/` too."""
    if not CLOTHING.is_dir():
        pytest.skip(f"{CLOTHING} is not there: set SKERRY_TEST_DATA to the folder of real test data")
    folder = tmp_path_factory.mktemp("desk")
    desk = Desk(folder, Shell(folder / "home"))
    for name in CLASSES:
        for part in ("train", "validation", "test"):
            for number, photo in enumerate(sorted((CLOTHING / part / name).glob("*.jpg"))):
                places = ["eval"] if part != "train" or number % 3 == 0 else ["train"]
                for place in [*places, *(["train"] if number == 0 else [])]:
                    (folder / place / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(photo, folder / place / name)
    for name, code in (("net", NET), ("slow", SLOW)):
        (folder / name).mkdir()
        (folder / name / "net.py").write_text(code)
        (folder / name / "recipe.toml").write_text(RECIPE)
        (folder / name / "labels.txt").write_text("\n".join(CLASSES))
    desk.shell.python(TRAIN, folder / "net", folder / "train", folder / "w.pth")
    return desk


COMPILE = "compile {} --weights w.pth --calib train --target x86-64 --work work"
PRUNE = "--prune --train train --epochs 2 --eval eval --max-drop 30"


@pytest.fixture(scope="module")
def pruned(desk: Desk) -> Said:
    """One compilation that prunes."""
    return desk.types(f"{COMPILE.format('net')} {PRUNE} -o pruned.skb")


@pytest.mark.slow
def test_the_most_pruned_net_that_keeps_within_the_limit_ships(desk: Desk, pruned: Said) -> None:
    assert pruned.code == 0, pruned.err
    said = desk.evidence("pruned.skb")
    (chosen,) = [rung for rung in said["pruned"]["rungs"] if rung["chosen"]]
    assert all(r["planned"] > 15 for r in said["pruned"]["rungs"] if r["ratio"] > chosen["ratio"])
    assert all(r["planned"] is None for r in said["pruned"]["rungs"] if r["ratio"] < chosen["ratio"]), "not trained"
    assert chosen["times_dense"] <= chosen["times_dense_at_most"] < 0.97
    assert chosen["planned"] <= said["pruned"]["room"] == 15
    assert "fp32" in {a["variant"] for a in said["accuracy"]}
    assert len({a["reference"] for a in said["accuracy"]}) == 1, "both are held to the dense net"
    assert all(a["drop_at_most"] <= 30 for a in said["accuracy"])
    assert {p["pruned"] for p in said["search"]} == {said["pruned"]["share"]}
    assert said["pruned"]["left_out"] == 3 * len(CLASSES)
    assert "dense" in {timing["model"] for timing in said["timings"]}
    assert not [proof["refused"] for proof in said["proofs"] if proof["refused"]]
    record = desk.evidence("pruned.skb", "pruning")
    assert record["format"] == "skerry.pruning/1"
    assert record["after"]["parameters"] == chosen["parameters"][1]
    assert said["pruned"]["words"] in desk.types("inspect pruned.skb").out


@pytest.mark.slow
def test_a_plan_prunes_and_trains_again_to_the_same_bytes(desk: Desk, pruned: Said) -> None:
    assert pruned.code == 0, pruned.err
    again = desk.types(f"{COMPILE.format('net')} --plan pruned.skb -o never.skb")
    assert again.code == 1
    assert "name the folder of the same pictures with --train" in again.err

    shutil.copytree(desk.folder / "train", desk.folder / "elsewhere" / "photos")
    command = COMPILE.format("net").replace("--work work", "--work anew")
    again = desk.types(f"{command} --plan pruned.skb --train elsewhere/photos -o again.skb")

    assert again.code == 0, again.err
    assert read_manifest(desk.folder / "again.skb") == read_manifest(desk.folder / "pruned.skb")
    (_,) = {json.dumps(desk.evidence(name, "plan")["pruned"]) for name in ("again.skb", "pruned.skb")}
    assert desk.evidence("again.skb")["lineage"] == desk.evidence("pruned.skb")["lineage"]

    (desk.folder / "elsewhere" / "photos" / "hat" / "one.jpg").write_bytes(
        next((CLOTHING / "train" / "pants").glob("*.jpg")).read_bytes()
    )
    other = desk.types(f"{command} --plan pruned.skb --train elsewhere/photos -o never.skb")
    assert other.code == 1
    assert "made for other inputs: train" in other.err


@pytest.mark.slow
def test_what_is_not_faster_is_never_taken_and_the_dense_net_ships(desk: Desk) -> None:
    said = desk.types(f"{COMPILE.format('slow')} {PRUNE.replace('--train train --epochs 2 ', '')} -o slow.skb")

    if "the machine is too busy to time on" in said.err:  # other work keeps it so
        assert not (desk.folder / "slow.skb").exists()
        return
    assert said.code == 0, said.err
    assert "pruning does not pay here, the dense net ships: " in said.out
    assert "of the dense net's time" in said.out
    found = desk.evidence("slow.skb")
    assert not any(rung["chosen"] for rung in found["pruned"]["rungs"])
    assert all(rung["drop"] is None for rung in found["pruned"]["rungs"] if rung["times_dense_at_most"] >= 0.97)
    assert "pruned" not in [key for key, value in desk.evidence("slow.skb", "plan").items() if value]
    assert any("not fine-tuned" in text for text in found["assumed"])


@pytest.mark.parametrize(
    ("options", "teaches"),
    [
        ("net.py:build --prune", "something must hold it: name labelled samples with --eval"),
        ("net.py:build --prune --eval .", "--max-drop how many points"),
        ("net.onnx --prune --eval . --max-drop 1", "compile the builder instead"),
        ("net.py:build --train .", "--train speaks of pruning alone"),
        ("net.py:build --prune-keep head", "--prune-keep speaks of pruning alone"),
        ("net.py:build --prune --eval . --max-drop 1 --epochs 3", "--epochs speaks of pruning alone"),
        ("net.py:build --prune --eval . --max-drop 1 --train nowhere", "--train nowhere is not a folder"),
        ("net.py:build --prune --eval . --max-drop 1 --plan p.json", "leave --prune or --plan out"),
    ],
)
def test_options_that_make_no_sense_teach(tmp_path: Path, options: str, teaches: str) -> None:
    (tmp_path / "net.py").write_text(NET)
    onnx.save(tiny.model(), tmp_path / "net.onnx")
    words = [str(tmp_path / word) if word.startswith("net.") else word for word in options.split()]
    with pytest.raises(UsageError, match=re.escape(teaches)):
        cli.main([*words, "--calib", ".", "--work", str(tmp_path / "work")])
