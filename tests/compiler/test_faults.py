"""The benchmark of faults stays alive: its list is whole, and a handful of faults ends as it should, on a small net."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import planted
import pytest
import tomllib

from benchmarks import faults, faults_case, faults_data, faults_layout, faults_mutated, faults_nets
from benchmarks.faults_nets import Net
from compiler.data.dataset import Labelled
from compiler.data.samples import Sample
from compiler.host import open_host
from compiler.sources import recipe

RECIPE = """
name = "planted"
labels = "labels.txt"
[model]
onnx = "net.onnx"
outputs = ["scores"]
[input]
shape = [1, 3, 48, 48]
[preprocess]
resize = "stretch"
mean = [0.5]
std = [0.25]
[postprocess]
kind = "classification"
scores = "scores"
[proof]
min_sqnr_db = 10.0
"""


def test_the_list_is_whole() -> None:
    listed = tomllib.loads(faults.LIST.read_text())["fault"]

    assert len(listed) == len({fault["name"] for fault in listed}) == 40
    assert sum("#" in fault["source"] for fault in listed) >= 10
    assert {fault["name"] for fault in listed} == set(faults._INJECTIONS)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """The planted net, its unit that int8 destroys made whole, as the benchmark holds its nets."""
    folder, before = tmp_path_factory.mktemp("faults"), Path.cwd()
    os.chdir(folder)  # the benchmark keeps its files below where it is started
    faults_nets.FOLDER.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "labels.txt").write_text("\n".join(planted.LABELS))
    onnx.save(_whole(planted.model()), folder / "net.onnx")
    calibration = planted.write_pictures(folder / "calib", 25, 500)
    held, truth = planted.write_pictures(folder / "eval", 90), planted.write_pictures(folder / "truth", 40, 300)
    source = recipe.load(str(folder / "net.onnx"), recipe.Overrides())
    pictures = sorted(truth.glob("*/*.bmp"))
    labelled = [Labelled(sample=Sample(str(p), 0, p.name), label=p.parent.name) for p in pictures]
    with open_host(source, lambda _text: None) as host:
        yield Net("planted", faults_nets.job(source, calibration, held), host, labelled)
    os.chdir(before)


def _whole(model: onnx.ModelProto) -> onnx.ModelProto:
    weight = faults_case.tensor(model, f"{planted.DESTROYED}.weight")
    weight[:, 0] = 0.0
    faults_case.put(model, f"{planted.DESTROYED}.weight", weight)
    return model


@pytest.mark.slow
def test_the_sound_net_is_let_pass(subject: Net) -> None:
    whole, int8 = (faults_nets.loaded(onnx.load(model)) for model in (subject.exported, subject.int8))

    assert whole is not None
    assert int8 is not None
    assert not subject.judge(whole).moved
    assert faults_case.export_hop(subject, whole) is None
    assert faults_case.variant_hop(subject, int8) is None
    assert faults_case.eval_check(subject, subject.interface) is None


@pytest.mark.slow
def test_clipped_ranges_are_caught_and_mended(subject: Net) -> None:
    layout = replace(subject.layout, ranges=faults_layout.clipped(subject, dict(subject.layout.ranges)))

    judged = faults_layout.mended(subject, layout, faults_layout.Drafts)

    assert judged.verdict == "caught"
    assert judged.mended is not None
    assert judged.mended.hop.failed is None
    assert judged.mended.repair.float_units < judged.mended.repair.units


@pytest.mark.slow
def test_exchanged_labels_are_caught_in_the_file_and_in_the_bundle(subject: Net) -> None:
    labels = [*subject.interface.labels[1::-1], *subject.interface.labels[2:]]
    assert faults_data.labelled_otherwise(subject, labels).verdict == "caught"
    root = faults_data.sound_bundle(subject)

    faults_case.rewrite(root, lambda values: values.update(labels=subject.interface.labels[::-1]))

    assert "answers differ from fp32" in (faults_case.proof(root, [plan.id for plan, _ in subject.job.plans]) or "")


@pytest.mark.slow
def test_a_dozen_mutations_of_weights_have_no_miss(subject: Net) -> None:
    verdicts = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        _, judged = faults_mutated.file_of(subject, random, faults_mutated.weights)
        verdicts.append(judged.verdict)

    assert "MISSED" not in verdicts
    assert "caught" in verdicts
