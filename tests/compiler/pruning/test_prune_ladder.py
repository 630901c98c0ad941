"""Rungs of pruned nets: cut and fine-tuned in the child; and which of them may be taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from passes import Passes
from PIL import Image
from shell import repository

from compiler.candidate import Work, file_digest
from compiler.climb import concluded, obstacle, too_few
from compiler.evidence.evidence import Rung
from compiler.host import Host
from compiler.pruning.prune import FineTune, Ladder, Picture, Pruning, Schedule
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.manifest import FORMAT, Classification, Interface, Preprocess, Tensor

SHAPE = [1, 3, 32, 32]
GRAPH = {"shape": SHAPE, "input_name": "image", "outputs": ["scores"]}
INTERFACE = Interface(
    format=FORMAT,
    name="colours",
    version=1,
    task="classification",
    inputs=[Tensor("image", "float32", SHAPE)],
    outputs=[Tensor("scores", "float32", [1, 4])],
    preprocess=Preprocess(resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), scale=1 / 255),
    postprocess=Classification(scores="scores"),
    labels=[],
)


def rung(ratio: float, at_most: float, planned: float | None = None) -> Rung:
    drop = None if planned is None else planned - 1
    return Rung(
        ratio=ratio,
        parameters=(100, 60),
        macs=(100, 50),
        times_dense=at_most - 0.02,
        times_dense_at_most=at_most,
        bytes=1,
        drop=drop,
        planned=planned,
    )


def test_a_rung_that_is_not_shown_to_be_faster_is_never_taken() -> None:
    assert "faster beyond doubt" in str(obstacle(rung(0.1, 0.97, planned=-1.0), 0.5))
    assert obstacle(rung(0.1, 0.96, planned=0.5), 0.5) is None


def test_what_is_planned_to_lose_more_than_the_room_is_not_taken_and_the_figures_are_said() -> None:
    slow, lossy = rung(0.125, 0.99), rung(0.5, 0.3, planned=2.5)

    said = concluded([slow, lossy], 0.5)

    assert said.startswith("pruning does not pay here, the dense net ships: 12.5% of the channels pruned")
    assert "0.97 of the dense net's time (0.99 at most); less than 0.97" in said
    assert "1.50 points on the search's samples, 2.50 planned; at most 2.50 points could be shown" in said
    assert concluded([], 0.5, ["nothing goes"]).endswith("nothing goes")


def test_too_few_samples_are_told_before_anything_is_trained() -> None:
    assert "463 samples report" in str(said := too_few(463, 0.5, classifies=True))
    assert "samples to --eval" in str(said)
    assert too_few(5000, 0.5, classifies=True) is None


def pictures(folder: Path, count: int, first: int) -> list[Picture]:
    """One colour rules each class."""
    folder.mkdir()
    found = []
    for number in range(first, first + count):
        label = number % 4
        noise = np.random.default_rng(number).integers(0, 90, (40, 40, 3), dtype=np.uint8)
        for channel in [label] if label < 3 else [0, 1, 2]:
            noise[..., channel] += 150
        path = folder / f"{number:03}.png"
        Image.fromarray(noise).save(path)
        found.append(Picture(str(path), 0, label, file_digest(path)))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository("colours", tmp_path / "colours")


def ladder(tmp_path: Path, root: Path, host: Host, pruning: Pruning, log: Passes) -> Ladder:
    work = Work(tmp_path / "work", Disk(), SystemClock(), log)
    loaded = work.cached("load", 1, [], {"root": root.name}, lambda _folder: host.load())
    return Ladder(work, host, Disk(), loaded, INTERFACE, GRAPH, pruning)


def open_host(root: Path, said: list[str]) -> Host:
    model = {"build": "net.py:build", "weights": None, "shape": SHAPE, "outputs": ["scores"]}
    return Host(root, model, said.append)


@pytest.mark.slow
def test_rungs_are_made_once_and_fine_tuned_the_same_each_time(tmp_path: Path, root: Path) -> None:
    how = FineTune(
        train=pictures(tmp_path / "train", 64, 0),
        held_out=pictures(tmp_path / "held-out", 24, 1000),
        schedule=Schedule(epochs=6, batch=16, rate=0.01, distillation=0.0),
    )
    pruning, log, said = Pruning(fine_tune=how), Passes(), []
    with open_host(root, said) as host:
        climb = ladder(tmp_path, root, host, pruning, log)
        first = climb.tuned(climb.cut(0.5))
        assert climb.tuned(climb.cut(0.5)) == first
    files = {"done.json", "model.onnx", "pruning.json", "weights.safetensors"}
    assert {p.name for p in first.folder.iterdir()} == files
    trained = first.facts["training"]
    assert trained["scores"][trained["kept"]] == max(trained["scores"]) > 60  # of four classes; random is 25
    before, after = first.facts["parameters"]
    assert after < 0.4 * before
    assert log.ran.count("prune") == log.ran.count("fine-tune") == 1
    assert log.resumed.count("prune") == log.resumed.count("fine-tune") == 1
    assert any("fine-tuning, epoch 6" in line for line in said)
    with open_host(root, said) as host:
        climb = ladder(tmp_path / "again", root, host, pruning, log)
        again = climb.tuned(climb.cut(0.5))
    assert again.digest == first.digest, "the same pictures and epochs give the same weights"
    assert climb.plan(again).tuning.pictures == how.digest()  # type: ignore[union-attr]


@pytest.mark.slow
def test_without_pictures_nothing_is_trained(tmp_path: Path, root: Path) -> None:
    with open_host(root, []) as host:
        climb = ladder(tmp_path, root, host, Pruning(), Passes())
        made = climb.cut(0.5)
        assert climb.tuned(made) is made
        assert climb.plan(made).tuning is None
        assert json.loads((made / "pruning.json").read_bytes())["format"] == "skerry.pruning/1"
        host.call("adopt", folder=str(made.folder), shape=SHAPE)
        assert "nothing goes" in climb.cut(0.01).facts["nothing"]


@pytest.mark.slow
def test_a_pruned_net_takes_a_batch(tmp_path: Path, root: Path) -> None:
    with open_host(root, []) as host:
        work = Work(tmp_path / "work", Disk(), SystemClock(), Passes())
        loaded = work.cached("load", 1, [], {}, lambda _folder: host.load())
        graph = {**GRAPH, "batch": [1, 4]}
        made = Ladder(work, host, Disk(), loaded, INTERFACE, graph, Pruning()).cut(0.5)
        host.call("adopt", folder=str(made.folder), shape=SHAPE, batch=[1, 4])
    session = onnxruntime.InferenceSession(made / "model.onnx")
    (scores,) = session.run(None, {"image": np.zeros((3, *SHAPE[1:]), np.float32)})
    assert scores.shape == (3, 4)
