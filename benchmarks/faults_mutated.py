"""Random mutations of compiled nets, from a seed: scales, zero points, axes, weights, labels, pre-processing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.faults_case import Judged, bent, max_drop, nodes, proof, put, rewrite, tensor, variant_hop
from benchmarks.faults_data import labelled_otherwise, read_otherwise, sound_bundle
from benchmarks.faults_nets import BENT, Net, loaded, net
from compiler.evaluation import compare
from compiler.evaluation.compare import Reference

KINDS = ("scale", "zero point", "axis", "weights", "labels", "pre-processing")
_SEED = 20261125
_NETS = ("resnet", "vit")

# Bends a file in place, and says how.
Change = Callable[[np.random.Generator, onnx.ModelProto], str]


@dataclass(frozen=True)
class Mutation:
    """One of them: what was done, in words, and how it ended."""

    kind: str
    words: str
    judged: Judged


def mutations(count: int) -> Iterator[Mutation]:
    """``count`` mutations, the kinds in turn. The same every time."""
    for number in range(count):
        random = np.random.default_rng((_SEED, number))
        kind = KINDS[number % len(KINDS)]
        words, judged = _MAKE[kind](random)
        yield Mutation(kind, words, judged)


# --- of a variant's file ----------------------------------------------------------------------------------------------


def _file(random: np.random.Generator, change: Change) -> tuple[str, Judged]:
    return file_of(net(str(random.choice(_NETS))), random, change)


def file_of(subject: Net, random: np.random.Generator, change: Change) -> tuple[str, Judged]:
    """A mutated INT8 file, held to what a compilation with --eval and --max-drop 1 holds it to."""
    said: list[str] = []
    run = loaded(bent(onnx.load(subject.int8), lambda model: said.append(change(random, model))))
    refused = "it does not load" if run is None else variant_hop(subject, run) or max_drop(subject, run)
    return f"{subject.name}: {said[0]}", Judged(subject.judge_file(BENT), refused)


def _named(model: onnx.ModelProto, ending: str, least: int = 0, kind: int = 0) -> list[str]:
    return [
        t.name
        for t in model.graph.initializer
        if t.name.endswith(ending) and len(t.dims) >= least and kind in (0, t.data_type)
    ]


def _scale(random: np.random.Generator, model: onnx.ModelProto) -> str:
    name = str(random.choice(_named(model, "_scale")))
    value, by = tensor(model, name), np.float32(2 ** random.uniform(-3, 3))
    where = int(random.integers(value.size)) if value.ndim and random.random() < 0.5 else None
    changed = value * by if where is None else value
    if where is not None:
        changed[where] *= by
    put(model, name, changed)
    return f"{name}{'' if where is None else f'[{where}]'} times {by:.2f}"


def _zero_point(random: np.random.Generator, model: onnx.ModelProto) -> str:
    name = str(random.choice(_named(model, "_zero_point", kind=TensorProto.UINT8)))
    value = tensor(model, name)
    other = int(np.clip(int(value) + random.integers(1, 128) * random.choice([-1, 1]), 0, 255))
    put(model, name, np.array(other, np.uint8))
    return f"{name} {int(value)} to {other}"


def _axis(random: np.random.Generator, model: onnx.ModelProto) -> str:
    """Scales along another axis where it is as long, else those of a neighbour."""
    found = [n for n in nodes(model, "DequantizeLinear") if n.input[0] in _named(model, "_quantized", 2)]
    node = found[int(random.integers(len(found)))]
    shape, attribute = tensor(model, node.input[0]).shape, next(a for a in node.attribute if a.name == "axis")
    others = [a for a in range(len(shape)) if a != attribute.i and shape[a] == shape[attribute.i]]
    if others and random.random() < 0.7:
        before, attribute.i = attribute.i, others[0]
        return f"{node.input[0]}: axis {before} to {attribute.i}"
    by = int(random.integers(1, shape[attribute.i]))
    put(model, node.input[1], np.roll(tensor(model, node.input[1]), by))
    return f"{node.input[1]} moved on by {by}"


def weights(random: np.random.Generator, model: onnx.ModelProto) -> str:
    """A table of weights that is not what it was."""
    name = str(random.choice(_named(model, "_quantized", 2)))
    words, changed = _reworked(random, tensor(model, name))
    put(model, name, changed.astype(np.int8))
    return f"{name}: {words}"


def _reworked(random: np.random.Generator, table: np.ndarray) -> tuple[str, np.ndarray]:
    kind = int(random.integers(6))
    if kind == 0:
        spread = int(random.integers(2, 40))
        return f"noise of {spread} steps", np.clip(table + random.normal(0, spread, table.shape), -127, 127)
    if kind == 1:
        share = random.uniform(0.05, 0.6)
        return f"{share:.0%} lost", np.where(random.random(table.shape) < share, 0, table)
    if kind == 2:
        return "outputs shuffled", table[random.permutation(len(table))]
    if kind == 3:
        share = random.uniform(0.01, 0.3)
        return f"{share:.0%} with the other sign", np.where(random.random(table.shape) < share, -table, table)
    if kind == 4:
        flips = np.where(random.random(table.shape) < 0.02, 1 << random.integers(0, 7, table.shape), 0)
        return "2 % with one bit flipped", np.clip(table.astype(np.int64) ^ flips, -127, 127)
    channels = random.permutation(len(table))[: max(1, len(table) // 4)]
    lost = table.copy()
    lost[channels] = 0
    return f"{len(channels)} outputs gone", lost


# --- of labels and recipes --------------------------------------------------------------------------------------------

_bundles: dict[str, Any] = {}


def _labels(random: np.random.Generator) -> tuple[str, Judged]:
    """Some labels shuffled: in the user's file, which samples must see, or in the bundle, which the proof must see."""
    subject = net("resnet")
    labels = list(subject.interface.labels)
    chosen = random.permutation(len(labels))[: int(random.choice([2, 3, len(labels)]))]
    moved = list(labels)
    for here, there in zip(chosen, np.roll(chosen, 1), strict=True):
        moved[here] = labels[there]
    where = str(random.choice(["file", "bundle"]))
    words = f"{len(chosen)} labels in the {where}: " + ", ".join(labels[i] for i in chosen[:3])
    if where == "file":
        return words, labelled_otherwise(subject, moved)
    return words, Judged(labelled_otherwise(subject, moved).truth, _proved(subject, moved))


def _proved(subject: Net, labels: list[str]) -> str | None:
    if "root" not in _bundles:
        _bundles["root"] = sound_bundle(subject)

    def change(values: dict[str, Any]) -> None:
        values["labels"] = labels

    rewrite(_bundles["root"], change)
    return proof(_bundles["root"], [plan.id for plan, _ in subject.job.plans])


def _preprocessing(random: np.random.Generator) -> tuple[str, Judged]:
    """A recipe that says something else than the training's code does."""
    subject = net("clothing" if random.random() < 0.7 else "resnet")
    changes = _changes(random, subject)
    wrong = read_otherwise(subject.interface, **changes)
    reference = Reference(subject.reference.path, subject.reference.frames, wrong, subject.limits.min_margin)
    truth = subject.judge(compare.on_backend(subject.exported), inputs=subject.inputs_by(wrong))
    words = ", ".join(f"{key} = {value}" for key, value in changes.items())
    return f"{subject.name}: {words}", Judged(truth, compare.compare_preprocessing(reference, subject.limits).failed)


def _changes(random: np.random.Generator, subject: Net) -> dict[str, Any]:
    pre = subject.interface.preprocess
    kinds: list[dict[str, Any]] = [
        {"mean": tuple(round(m + random.normal(0, 0.2), 3) for m in pre.mean)},
        {"std": tuple(round(s * 2 ** random.normal(0, 0.7), 3) for s in pre.std)},
        {"scale": pre.scale * float(random.choice([255.0, 0.5, 2.0, 1 / 255, 256 / 255]))},
        {"mean": pre.std, "std": pre.mean},
        {"resize": "letterbox", "pad_value": int(random.integers(256))},
        {"resize": "crop", "resize_to": int(random.integers(1, 3)) * 40 + subject.interface.input_size()[0]},
        {"interpolation": "nearest", "antialias": False},
    ]
    if pre.color == "rgb":
        kinds += [{"color": "bgr"}, {"antialias": False}]
    return kinds[int(random.integers(len(kinds)))]


_MAKE: dict[str, Callable[[np.random.Generator], tuple[str, Judged]]] = {
    "scale": lambda random: _file(random, _scale),
    "zero point": lambda random: _file(random, _zero_point),
    "axis": lambda random: _file(random, _axis),
    "weights": lambda random: _file(random, weights),
    "labels": _labels,
    "pre-processing": _preprocessing,
}
