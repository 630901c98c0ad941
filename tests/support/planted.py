"""A small net that tells textures apart, with one unit that int8 destroys and one that int8 slows down.

Needs numpy, onnx and onnxruntime. Its first filters are waves, and its head is fitted, by least squares, to what the
net makes of training pictures: that takes a second, and it is right about most of what it never saw.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import drawn
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from PIL import Image

from compiler.graph.onnxfile import Probe
from skerry.execution.processing import Preprocessor
from skerry.manifest import Interface, Preprocess

SIZE = 48
LABELS = [f"{way} {pace}" for way in ("lying", "standing") for pace in ("slow", "middling", "fast")]
DESTROYED, SLOWED = "mix", "grouped"


@dataclass(frozen=True)
class Unit:
    """A fusion unit, as compiler/quantization/units.py has them."""

    name: str
    nodes: tuple[str, ...]
    macs: int


UNITS = [
    Unit("stem", ("stem", "stem_relu"), 3 * 16 * 49 * SIZE**2),
    Unit("wide", ("wide", "wide_relu"), 16 * 32 * 9 * SIZE**2),
    Unit(SLOWED, (SLOWED,), 32 * 32 // 8 * 9 * SIZE**2),
    Unit(DESTROYED, (DESTROYED, "mix_relu"), 32 * 32 * SIZE**2),
    Unit("deep", ("deep", "deep_relu"), 32 * 64 * 9 * SIZE**2),
    Unit("last", ("last", "last_relu"), 64 * 64 * 9 * SIZE**2),
    Unit("head", ("head",), 64 * len(LABELS)),
]


def interface() -> Interface:
    preprocess = Preprocess(resize="stretch", mean=(0.5,), std=(0.25,))
    return drawn.interface({"scores": [1, len(LABELS)]}, preprocess, size=(SIZE, SIZE), labels=LABELS)


def picture(label: int, seed: int) -> np.ndarray:
    """A grating of one direction and pace, of any colour and phase, under noise."""
    random = np.random.default_rng((label, seed))
    pace = (3.0, 4.5, 6.5)[label % 3] * random.uniform(0.92, 1.08)
    across = np.arange(SIZE) / SIZE if label < 3 else np.arange(SIZE)[:, None] / SIZE
    wave = np.sin(2 * np.pi * (pace * across + random.uniform())) * np.ones((SIZE, SIZE))
    frame = 128 + random.uniform(25, 60) * wave[:, :, None] * random.uniform(0.4, 1.0, 3)
    return np.clip(frame + random.normal(0, 38, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, each: int, first: int = 0) -> Path:
    """A folder per class."""
    for label, name in enumerate(LABELS):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + each):
            Image.fromarray(picture(label, seed)).save(folder / name / f"{seed}.bmp")
    return folder


def tensors(seeds: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Label and input of training pictures."""
    preprocess = Preprocessor(interface())
    for seed in seeds:
        for label in range(len(LABELS)):
            tensor = np.zeros((1, 3, SIZE, SIZE), np.float32)
            preprocess(picture(label, seed), tensor)
            yield label, tensor


def model() -> onnx.ModelProto:
    """image [1, 3, 48, 48] to scores [1, 6]."""
    weights = {
        "stem": gabors(),
        "wide": mostly_passing(32, 16, 3),
        SLOWED: mostly_passing(32, 4, 3),
        DESTROYED: mostly_passing(32, 32, 1),
        "deep": mostly_passing(64, 32, 3),
        "last": mostly_passing(64, 64, 3),
    }
    weights[SLOWED][0] = 0.0  # a dead channel, ...
    weights[DESTROYED][:, 0] = 300.0  # ... whose weights, which do nothing in fp32, take the whole int8 grid
    nodes = [
        *layer("stem", "image", pads=3),
        *layer("wide", "stem_relu"),
        helper.make_node("Abs", ["wide_relu"], ["before"], name="before"),  # no int8 kernel: grids end here
        conv(SLOWED, "before", group=8),  # and ONNX Runtime's int8 convolution in groups is slower than its float one
        helper.make_node("Abs", [SLOWED], ["after"], name="after"),
        *layer(DESTROYED, "after", pads=0),
        *layer("deep", "mix_relu"),
        *layer("last", "deep_relu"),
        helper.make_node("GlobalAveragePool", ["last_relu"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["features"], name="features"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], name="head"),
    ]
    constants = [numpy_helper.from_array(value, f"{name}.weight") for name, value in weights.items()]
    constants += [
        numpy_helper.from_array(np.zeros(len(value), np.float32), f"{name}.bias") for name, value in weights.items()
    ]
    return fitted(nodes, constants)


def gabors() -> np.ndarray:
    """[16, 3, 7, 7]: a wave of each direction and pace in two phases and both signs, as far as there is room."""
    across = np.arange(-3, 4) / SIZE
    window = np.exp(-0.5 * (np.arange(-3, 4) / 2.0) ** 2)
    filters = []
    for standing in (False, True):
        for pace in (3.0, 4.5, 6.5, 9.0):
            for phase in (0.0, np.pi / 2):
                wave = np.outer(window, window * np.cos(2 * np.pi * pace * across + phase))
                filters.append(wave.T if standing else wave)
    table = np.array(filters) - np.mean(filters, axis=(1, 2), keepdims=True)
    return np.repeat(table[:, None], 3, axis=1).astype(np.float32) / 10


def mostly_passing(out: int, into: int, size: int) -> np.ndarray:
    """Each channel is handed on, with a little of all others."""
    random = np.random.default_rng(out + into + size)
    table = random.normal(0, 0.3 * (into * size * size) ** -0.5, (out, into, size, size))
    table[np.arange(out), np.arange(out) % into, size // 2, size // 2] += 1.0
    return table.astype(np.float32)


def conv(name: str, source: str, *, pads: int = 1, group: int = 1) -> onnx.NodeProto:
    inputs = [source, f"{name}.weight", f"{name}.bias"]
    return helper.make_node("Conv", inputs, [name], name=name, pads=[pads] * 4, group=group)


def layer(name: str, source: str, *, pads: int = 1) -> list[onnx.NodeProto]:
    return [conv(name, source, pads=pads), helper.make_node("Relu", [name], [f"{name}_relu"], name=f"{name}_relu")]


def fitted(nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    """The net with a head that answers its training pictures best, by ridge regression."""
    blank = [np.zeros((64, len(LABELS)), np.float32), np.zeros(len(LABELS), np.float32)]
    probe = Probe(made(nodes, constants, blank), ["features"], threads=1)
    labels, features = [], []
    for label, tensor in tensors(range(10_000, 10_060)):
        ((_, found),) = probe(tensor)
        labels.append(label)
        features.append(found[0])
    x, y = np.array(features, np.float64), np.eye(len(LABELS))[labels]
    middle, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = np.c_[(x - middle) / spread, np.ones(len(x))]
    solved = np.linalg.solve(z.T @ z + 20.0 * np.eye(z.shape[1]), z.T @ (8 * y))
    weight = solved[:-1] / spread[:, None]
    bias = solved[-1] - middle @ weight
    return made(nodes, constants, [weight.astype(np.float32), bias.astype(np.float32)])


def made(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], head: Sequence[np.ndarray]
) -> onnx.ModelProto:
    named = [
        numpy_helper.from_array(value, f"head.{part}") for value, part in zip(head, ("weight", "bias"), strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(LABELS)])],
        [*constants, *named],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(built)


class _Frames(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = tensors(range(20_000, 20_003))

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self._left, None)
        return None if found is None else {"image": found[1]}


def lay_out(source: Path, target: Path, keep_float: Sequence[str]) -> None:
    """Plain static INT8 by ONNX Runtime's own writer, 7-bit weights: knows nothing of the search."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            quantize_static(
                source,
                target,
                _Frames(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=list(keep_float),
            )
    finally:
        logging.disable(logging.NOTSET)
