"""Rungs of pruned nets: made in the child, fine-tuned, timed in turns; and which of them may be taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from passes import Passes
from PIL import Image
from shell import repository

from compiler.candidate import Candidate, Work, file_digest
from compiler.host import Host
from compiler.prune import FineTune, Labelled, Ladder, Pruning, Rung, pick
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


def rung(ratio: float, times: float, at_most: float) -> Rung:
    return Rung(ratio, Candidate("prune", Path(), "", (), {}), times, at_most)


def test_the_least_pruned_rung_that_is_fast_enough_is_taken() -> None:
    ladder = [rung(0.5, 0.5, 0.55), rung(0.125, 0.9, 0.93), rung(0.25, 0.78, 0.8)]
    assert [pick(ladder, wanted).ratio for wanted in (1.0, 0.8, 0.6)] == [0.125, 0.25, 0.5]  # type: ignore[union-attr]
    assert pick(ladder, 0.4) is None


def test_a_rung_that_is_not_shown_to_be_faster_is_never_returned() -> None:
    assert pick([rung(0.1, 1.02, 1.05), rung(0.2, 0.99, 1.01), rung(0.3, 0.95, 0.98)]) is None


def pictures(folder: Path, count: int, first: int) -> list[Labelled]:
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
        found.append(Labelled(str(path), 0, label, file_digest(path)))
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
def test_rungs_are_made_once_fine_tuned_and_timed(tmp_path: Path, root: Path) -> None:
    how = FineTune(
        train=pictures(tmp_path / "train", 64, 0),
        held_out=pictures(tmp_path / "held-out", 24, 1000),
        epochs=6,
        batch=16,
        rate=0.01,
        distillation=0.0,
    )
    pruning, log, said = Pruning(ratios=(0.25, 0.5), fine_tune=how), Passes(), []
    with open_host(root, said) as host:
        climb = ladder(tmp_path, root, host, pruning, log)
        first = climb.rung(0.5)
        dense = climb.work.cached(
            "export",
            1,
            [climb.loaded],
            GRAPH,
            lambda folder: host.call("export", **GRAPH, out=str(folder / "model.onnx")),
        )
        rungs = climb.climb(dense, 0.2)
    assert {p.name for p in first.folder.iterdir()} == {
        "done.json",
        "model.onnx",
        "pruning.json",
        "weights.safetensors",
    }
    trained = first.facts["training"]
    assert trained["scores"][trained["kept"]] == max(trained["scores"]) > 60  # of four classes; random is 25
    before, after = first.facts["parameters"]
    assert after < 0.4 * before
    assert [r.ratio for r in rungs] == [0.25, 0.5]
    assert all(0 < r.times_dense <= r.at_most for r in rungs)
    assert log.ran.count("prune") == 2
    assert log.resumed.count("prune") == 1
    assert any("fine-tuning, epoch 6" in line for line in said)
    with open_host(root, said) as host:
        again = ladder(tmp_path / "again", root, host, pruning, log).rung(0.5)
    assert again.digest == first.digest, "the same pictures and epochs give the same weights"


@pytest.mark.slow
def test_without_pictures_nothing_is_trained_and_the_facts_say_so(tmp_path: Path, root: Path) -> None:
    with open_host(root, []) as host:
        made = ladder(tmp_path, root, host, Pruning(), Passes()).rung(0.5)
        assert made.facts["training"] is None
        assert json.loads((made / "pruning.json").read_bytes())["format"] == "skerry.pruning/1"
        host.call("adopt", folder=str(made.folder), shape=SHAPE)
        unmoved = ladder(tmp_path / "none", root, host, Pruning(ratios=(0.01,)), Passes())
        assert "nothing goes" in unmoved.rung(0.01).facts["nothing"]
        assert unmoved.climb(made, 0.0) == []
