"""Faults of pre- and post-processing, labels, and what happens to a bundle behind the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from benchmarks.faults_case import Injection, Judged, bundle, eval_check, proof, raised, rewrite
from benchmarks.faults_nets import FOLDER, Net, net
from compiler.evaluation import compare
from compiler.evaluation.compare import Reference
from compiler.ingraph import release as ingraph
from compiler.ingraph.wrap import Surroundings, surround
from skerry.bundle import open_directory
from skerry.execution.frames import read_frames
from skerry.execution.ingraph import make_preprocessor, make_reader
from skerry.manifest import InGraph, Interface


def read_otherwise(interface: Interface, **changes: object) -> Interface:
    """The interface with another pre-processing."""
    return msgspec.structs.replace(interface, preprocess=msgspec.structs.replace(interface.preprocess, **changes))


def _prepared(name: str, **changes: object) -> Judged:
    """A recipe that prepares otherwise than the training's code, which it names."""
    subject = net(name)
    wrong = read_otherwise(subject.interface, **changes)
    reference = Reference(subject.reference.path, subject.reference.frames, wrong, subject.limits.min_margin)
    truth = subject.judge(compare.on_backend(subject.exported), inputs=subject.inputs_by(wrong))
    return Judged(truth, compare.compare_preprocessing(reference, subject.limits).failed)


def _prepared_by(name: str, function: str) -> Judged:
    """Code of the training that prepares otherwise than the recipe: the net sees what the code gives."""
    subject = net(name)
    recipe = msgspec.structs.replace(
        subject.job.recipe, model=msgspec.structs.replace(subject.job.recipe.model, preprocess=f"prepare.py:{function}")
    )
    source = msgspec.structs.replace(subject.job.source, recipe=recipe)
    other = Net(name, replace(subject.job, source=source), subject.host, subject.truth)
    from benchmarks.nets import prepare  # noqa: PLC0415 - a user's file, for the truth alone

    frames = read_frames([(s.sample.path, 0) for s in subject.truth])
    fed = [getattr(prepare, function)(frame)[None].astype(np.float32) for frame in frames]
    truth = subject.judge(compare.on_backend(subject.exported), inputs=fed)
    return Judged(truth, compare.compare_preprocessing(other.reference, other.limits).failed)


# --- what labelled samples see ----------------------------------------------------------------------------------------


def _pixels() -> Judged:
    subject = net("clothing")
    wrong = read_otherwise(subject.interface, scale=1.0)
    truth = subject.judge(compare.on_backend(subject.exported), inputs=subject.inputs_by(wrong))
    return Judged(truth, eval_check(subject, wrong))


def labelled_otherwise(subject: Net, labels: Sequence[str]) -> Judged:
    """A file of labels in another order."""
    wrong = msgspec.structs.replace(subject.interface, labels=list(labels))
    renamed = dict(zip(subject.interface.labels, labels, strict=True))
    said = [[msgspec.structs.replace(a, label=renamed[a.label]) for a in found] for found in subject.sound]
    return Judged(subject.judged(said), eval_check(subject, wrong))


def _further() -> Judged:
    labels = net("resnet").interface.labels
    return labelled_otherwise(net("resnet"), [labels[-1], *labels[:-1]])


def _exchanged() -> Judged:
    labels = list(net("resnet").interface.labels)
    labels[1], labels[8] = labels[8], labels[1]
    return labelled_otherwise(net("resnet"), labels)


def _corners() -> Judged:
    subject = net("cells")
    post = msgspec.structs.replace(subject.interface.postprocess, box_format="xyxy")
    wrong = msgspec.structs.replace(subject.interface, postprocess=post)
    return Judged(subject.judge(compare.on_backend(subject.exported), wrong), eval_check(subject, wrong))


# --- a bundle ---------------------------------------------------------------------------------------------------------


def sound_bundle(subject: Net) -> Path:
    """A bundle to be bent. It must prove itself as it is, or a refusal would say nothing."""
    root = bundle(subject, FOLDER / "bundle")
    open_directory(root, [subject.job.key.public_key()])
    if why := proof(root, [plan.id for plan, _ in subject.job.plans]):
        raise SystemExit(f"the sound bundle is refused: {why}")
    return root


def _shuffled() -> Judged:
    subject = net("resnet")
    root = sound_bundle(subject)
    labels = subject.interface.labels[::-1]

    def change(values: dict[str, Any]) -> None:
        values["labels"] = labels

    rewrite(root, change)
    truth = labelled_otherwise(subject, labels).truth
    return Judged(truth, proof(root, [plan.id for plan, _ in subject.job.plans]))


def _loosened() -> Judged:
    subject = net("cells")
    root = sound_bundle(subject)

    def change(values: dict[str, Any]) -> None:
        values["postprocess"]["iou_threshold"] = 0.95

    rewrite(root, change)
    post = msgspec.structs.replace(subject.interface.postprocess, iou_threshold=0.95)
    wrong = msgspec.structs.replace(subject.interface, postprocess=post)
    truth = subject.judge(compare.on_backend(subject.exported), wrong)
    return Judged(truth, proof(root, ["fp32"]))


def _damaged() -> Judged:
    subject = net("resnet")
    root = sound_bundle(subject)
    file = root / "variants" / subject.plan.id / "weights.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return Judged(None, raised(lambda: open_directory(root, [subject.job.key.public_key()])))


def _unfiltered() -> Judged:
    subject = net("cells")
    graph = InGraph(answers=True)
    sound = ingraph.around(graph, subject.interface, subject.limits, "onnxrt")
    lost = Surroundings(graph, slack=subject.interface.postprocess.min_score, suppression=sound.suppression)
    paths = {}
    for name, around in (("sound", sound), ("lost", lost)):
        paths[name] = FOLDER / f"{name}.onnx"
        paths[name].write_bytes(surround(onnx.load(subject.exported), subject.interface, around).SerializeToString())
    hops = {
        name: ingraph.compare_in_graph(name, subject.reference, subject.exported, path, graph, subject.limits).failed
        for name, path in paths.items()
    }
    assert hops["sound"] is None
    run, read = compare.on_backend(paths["lost"]), make_reader(subject.interface, graph)
    prepare, tensor, said = make_preprocessor(subject.interface, graph), np.zeros_like(subject.inputs[0]), []
    for frame in read_frames([(s.sample.path, 0) for s in subject.truth]):
        geometry = prepare(frame, tensor)
        said.append(read(run(tensor), geometry, subject.limits.min_margin))
    return Judged(subject.judged(said), hops["lost"])


FAULTS: dict[str, Injection] = {
    "red-and-blue-swapped": lambda: _prepared("clothing", color="bgr"),
    "mean-and-deviation-swapped": lambda: _prepared("clothing", mean=(0.25,) * 3, std=(0.5,) * 3),
    "letterbox-in-the-corner": lambda: _prepared_by("cells", "cornered"),
    "channels-last-fed-as-first": lambda: _prepared_by("clothing", "interleaved"),
    "pixels-of-0-to-255": _pixels,
    "labels-one-further": _further,
    "two-labels-exchanged": _exchanged,
    "boxes-read-as-corners": _corners,
    "labels-shuffled-in-the-bundle": _shuffled,
    "suppression-loosened": _loosened,
    "weights-damaged": _damaged,
    "filter-lost-in-the-graph": _unfiltered,
}
