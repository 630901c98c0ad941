"""Fusion units: what belongs together, found by structure alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import nets
import onnx
import pytest

from compiler.graph.view import Graph
from compiler.quantization import quantize
from compiler.quantization.units import QUANTIZABLE, Unit, fusion_units

ROOT = Path(__file__).parents[3]
NETS = [nets.residual, nets.split_and_concat, nets.transformer]


def by_name(model: onnx.ModelProto) -> dict[str, Unit]:
    return {unit.name: unit for unit in fusion_units(model)}


def members(unit: Unit) -> set[str]:
    return set(unit.nodes)


def assert_lawful(model: onnx.ModelProto) -> list[Unit]:
    """The laws of units on any graph."""
    graph, units = Graph(model), fusion_units(model)
    quantizable = [n.name for n in graph.nodes if n.op_type in QUANTIZABLE and graph.computes_floats(n)]
    assert Counter(name for unit in units for name in unit.nodes) == Counter(quantizable)
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    assert [unit.name for unit in units] == sorted((unit.name for unit in units), key=order.__getitem__)
    for unit in units:
        assert unit.name in unit.nodes
        assert list(unit.nodes) == sorted(unit.nodes, key=order.__getitem__)
        assert (unit.macs > 0) == (unit.kind != "other")
    return units


@pytest.mark.parametrize("build", NETS)
def test_every_quantizable_node_is_in_exactly_one_unit(build) -> None:
    assert_lawful(build())


@pytest.mark.parametrize("build", NETS)
def test_names_decide_nothing(build) -> None:
    model, renamed = build(), build()
    names = {node.name: f"{number}" for number, node in enumerate(model.graph.node)}
    for node in renamed.graph.node:
        node.name = names[node.name]
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                values[index] = f"x{value}"
    for item in (*renamed.graph.input, *renamed.graph.output, *renamed.graph.initializer, *renamed.graph.value_info):
        item.name = f"x{item.name}"

    wanted = [(names[u.name], u.kind, tuple(names[n] for n in u.nodes), u.macs) for u in fusion_units(model)]
    assert [(u.name, u.kind, u.nodes, u.macs) for u in fusion_units(renamed)] == wanted


def test_the_residual_add_goes_with_the_branch_that_arrives_last() -> None:
    units = by_name(nets.residual())

    assert members(units["a2"]) == {"a2", "a.sum", "a"}
    assert members(units["shortcut"]) == {"shortcut"}
    assert {"b2", "b.sum", "b"} <= members(units["b2"])


def test_a_shortcut_that_is_written_last_does_not_take_the_add() -> None:
    model = nets.residual()
    nodes = list(model.graph.node)
    shortcut = next(n for n in nodes if n.name == "shortcut")
    nodes.remove(shortcut)
    nodes.insert(next(i for i, n in enumerate(nodes) if n.name == "a.sum"), shortcut)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)

    assert "a.sum" in members(by_name(model)["a2"])


def test_silu_split_and_concat_stay_with_the_convolution_before() -> None:
    units = by_name(nets.split_and_concat())

    assert list(units) == ["enter", "inner0a", "inner0b", "inner1a", "inner1b", "leave", "boxes"]
    assert len(units["enter"].nodes) == 4  # Conv, Sigmoid, Mul, Split
    assert len(units["inner1b"].nodes) == 5  # Conv, Sigmoid, Mul, Add, Concat


def test_the_two_products_of_attention_are_one_unit() -> None:
    units = by_name(nets.transformer())

    attention = units["block0.scores"]
    assert attention.kind == "attention"
    assert {"block0.scores", "block0.mix"} <= members(attention)
    assert "block0.mix" not in units
    assert [u.kind for n, u in units.items() if n.startswith("block0")].count("linear") == 6
    assert "block0.sum1" in members(units["block0.out"])
    assert "block0.sum2" in members(units["block0.down"])


def test_macs_are_counted_from_shapes() -> None:
    units = by_name(nets.residual())
    assert units["stem"].macs == 8 * 16 * 16 * 3 * 9
    assert units["scores"].macs == 4 * 16
    attention = by_name(nets.transformer())["block0.scores"]
    assert attention.macs == 2 * (2 * 16 * 16 * 8)  # scores and mix: 2 heads, 16 rows, 16 columns, 8 deep


def test_depthwise_and_transposed_convolutions_count_their_own_work() -> None:
    net = nets.Net(1, 8, 8, 8)
    each = net.conv("image", 8, 8, 3, name="each", group=8)
    up = net.node("ConvTranspose", each, net.weights(8, 4, 2, 2), name="up", strides=[2, 2])

    units = by_name(net.model(up))

    assert (units["each"].kind, units["each"].macs) == ("depthwise", 8 * 8 * 8 * 9)
    assert (units["up"].kind, units["up"].macs) == ("conv", 8 * 8 * 8 * 4 * 2 * 2)


def test_what_stands_before_the_first_weights_joins_them() -> None:
    net = nets.Net(1, 3, 8, 8)
    scaled = net.node("Mul", "image", net.constant([0.5]), name="scaled")
    pooled = net.node("MaxPool", scaled, name="pooled", kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(net.conv(pooled, 3, 4, 3, name="first"))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(nets.np.float32([0.5]), "c0"))

    assert members(by_name(model)["first"]) == {"scaled", "pooled", "first"}


def test_a_net_without_weights_is_one_unit_of_other_things() -> None:
    net = nets.Net(1, 3, 8, 8)
    (unit,) = fusion_units(net.model(net.node("Relu", net.node("MaxPool", "image", kernel_shape=[1, 1]))))

    assert (unit.kind, unit.macs, len(unit.nodes)) == ("other", 0, 2)


EXPORT = """
import importlib.util, sys, torch
from torch import nn
import torch.nn.functional as F

class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.a, self.b = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
    def forward(self, x):
        return F.relu(self.skip(x) + self.b(self.two(F.relu(self.a(self.one(x))))))

class C2f(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(c, c, 1), nn.Conv2d(c * 2, c, 1)
        self.inner = nn.ModuleList(nn.Conv2d(c // 2, c // 2, 3, 1, 1) for _ in range(2))
    def forward(self, x):
        parts = list(F.silu(self.enter(x)).chunk(2, 1))
        for inner in self.inner:
            parts.append(parts[-1] + F.silu(inner(parts[-1])))
        return F.silu(self.leave(torch.cat(parts, 1)))

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        layer = nn.TransformerEncoderLayer(32, 2, 64, norm_first=True, batch_first=True, activation="gelu")
        self.layers = nn.ModuleList([layer])
        self.head = nn.Linear(32, 4)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))

def blocks():
    return Residual(8, 8, 1), Residual(8, 16, 2)

def mobilenet():
    spec = importlib.util.spec_from_file_location("model", "models/mobilenetv2/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build()

NETS = {
    "mobilenet": mobilenet,
    "resnet": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *blocks()),
    "c2f": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), C2f(16)),
    "transformer": Transformer,
}
torch.manual_seed(0)
for name, build in NETS.items():
    net = build().eval()
    out = f"{sys.argv[1]}/{name}.onnx"
    torch.onnx.export(net, (torch.zeros(1, 3, 64, 64),), out, dynamo=True, opset_version=20, external_data=False)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch's exporter makes of real modules, prepared."""
    folder = tmp_path_factory.mktemp("exported")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, folder], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in sorted(folder.glob("*.onnx")):
        quantize.prepare(path, folder / f"{path.stem}.prepared")
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("exported")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mobilenet", {"conv": 35, "depthwise": 17, "linear": 1}),
        ("resnet", {"conv": 6}),
        ("c2f", {"conv": 5}),
        ("transformer", {"conv": 1, "linear": 5, "attention": 1}),
    ],
)
def test_units_of_what_torch_exports(exported: Path, name: str, kinds: dict[str, int]) -> None:
    units = assert_lawful(onnx.load(exported / f"{name}.prepared"))

    assert Counter(unit.kind for unit in units) == kinds


@pytest.mark.slow
@pytest.mark.xdist_group("exported")
def test_mobilenets_macs_are_the_papers(exported: Path) -> None:
    """Sandler et al. count 300 million at 224x224; here it is 64x64."""
    units = fusion_units(onnx.load(exported / "mobilenet.prepared"))

    spatial = sum(unit.macs for unit in units if unit.kind != "linear")
    assert (spatial * (224 / 64) ** 2 + 1_280_000) / 1e6 == pytest.approx(300, rel=0.01)
