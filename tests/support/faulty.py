"""Small nets in which something can be planted, and the shortest way to quantize them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compiler.quantization import calibrate, quantize

SIZE = 16
CHANNELS = 16


def frames(count: int = 8, seed: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(0.2, 1.0, (1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(count)]


class Net:
    """A graph that grows node by node; each node has a name and the module path that torch's exporter notes."""

    def __init__(self, seed: int = 3) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def values(self, name: str, *shape: int, scale: float = 0.3) -> str:
        return self.constant(name, self._random.normal(0.0, scale, shape))

    def constant(self, name: str, value: object, dtype: type = np.float32) -> str:
        self.weights[name] = np.asarray(value, dtype)
        return name

    def add(self, kind: str, inputs: list[str], output: str, module: str = "", **attributes: object) -> str:
        node = helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes)
        scopes = str(["", *([module] if module else []), output])
        node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
        self.nodes.append(node)
        return output

    def conv(self, source: str, output: str, module: str, *, into: int = CHANNELS, relu: bool = True) -> str:
        weight = self.values(f"{module}.weight", into, 3 if source == "image" else CHANNELS, 3, 3, scale=0.12)
        bias = self.values(f"{module}.bias", into, scale=0.1)
        self.add("Conv", [source, weight, bias], output, module, pads=[1, 1, 1, 1])
        return self.add("Relu", [output], f"{output}.relu", module) if relu else output

    def head(self, source: str) -> onnx.ModelProto:
        """Mean over the picture, then four scores."""
        mean = self.add("GlobalAveragePool", [source], "mean")
        flat = self.add("Flatten", [mean], "flat")
        inputs = [flat, self.values("head.weight", 4, CHANNELS, scale=1.0), self.values("head.bias", 4)]
        self.add("Gemm", inputs, "scores", "head", transB=1)
        return self.model(4)

    def model(self, outputs: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, outputs])],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def chain(blocks: int = 2, outlier: str = "", spread: float = 300.0) -> onnx.ModelProto:
    """image [1, 3, 16, 16] to scores [1, 4]: a stem and residual blocks of two convolutions.

    Args:
        outlier: the module one of whose output channels is ``spread`` times as large as it should be, and whose reader
            divides it away again: nothing changes in floats, and no single grid holds the other channels.
    """
    net = Net()
    value = net.conv("image", "stem", "stem")
    for number in range(blocks):
        name = f"block.{number}"
        inner = net.conv(value, f"c{number}a", f"{name}.a")
        inner = net.conv(inner, f"c{number}b", f"{name}.b", relu=False)
        value = net.add("Add", [value, inner], f"add{number}", name)
        value = net.add("Relu", [value], f"out{number}", name)
    if outlier:
        reader = f"{outlier.removesuffix('.a')}.b"
        net.weights[f"{outlier}.weight"][3] *= spread
        net.weights[f"{outlier}.bias"][3] *= spread
        net.weights[f"{reader}.weight"][:, 3] /= spread
    return net.head(value)


def normed(*, odd: bool = False, loud: float = 1.0) -> onnx.ModelProto:
    """The same picture to scores through a layer normalization in parts, with an MLP behind it.

    Args:
        odd: the parts are put together in a way that no fusion knows.
        loud: what the features are multiplied by: in half precision the square overflows from 256 on.
    """
    net = Net()
    mean = net.add("GlobalAveragePool", [net.conv("image", "stem", "stem")], "mean")
    value = net.add("Flatten", [mean], "flat")
    value = net.add("Mul", [value, net.constant("loud", loud)], "features")
    axes = net.constant("axes", [-1], np.int64)
    centre = net.add("ReduceMean", [value, axes], "mu", "norm")
    off = net.add("Sub", [value, centre], "off", "norm")
    square = net.add("Pow", [off, net.constant("two", 2.0)], "square", "norm")
    spread = net.add("ReduceMean", [square, axes], "var", "norm")
    if odd:
        spread = net.add("Mul", [spread, net.constant("one", 1.0)], "odd", "norm")
    spread = net.add("Add", [spread, net.constant("eps", 1e-5)], "var_eps", "norm")
    normal = net.add("Div", [off, net.add("Sqrt", [spread], "std", "norm")], "normal", "norm")
    scaled = net.add("Mul", [normal, net.constant("norm.weight", np.ones(CHANNELS))], "scaled", "norm")
    value = net.add("Add", [scaled, net.constant("norm.bias", np.zeros(CHANNELS))], "normed", "norm")
    hidden = net.add("MatMul", [value, net.values("up.weight", CHANNELS, 32)], "up", "mlp.up")
    hidden = net.add("Relu", [hidden], "up.relu", "mlp")
    value = net.add("MatMul", [hidden, net.values("down.weight", 32, CHANNELS)], "down", "mlp.down")
    inputs = [value, net.values("head.weight", 4, CHANNELS), net.values("head.bias", 4)]
    net.add("Gemm", inputs, "scores", "head", transB=1)
    return net.model(4)


def stream(blocks: int = 3, loud: float = 2000.0) -> onnx.ModelProto:
    """Scores through a transformer's residual stream, one of whose channels the first block makes ``loud``.

    On a grid that holds it, every addition rounds the other channels away. The normalization that each block reads
    through does away with the loud channel, and brings the others back to what they were before it.
    """
    net = Net()
    mean = net.add("GlobalAveragePool", [net.conv("image", "stem", "stem")], "mean")
    value = net.add("Reshape", [mean, net.constant("as tokens", [1, 1, CHANNELS], np.int64)], "token")
    quiet = np.ones(CHANNELS, np.float32)
    quiet[5] = 0.0

    def norm(source: str, number: int) -> str:
        # Of a vector with one large entry, mean / deviation = 1 / sqrt(n - 1) and deviation = entry sqrt(n - 1) / n.
        bias = quiet * (1 / np.sqrt(CHANNELS - 1) if number else 0.0)
        inputs = [source, net.constant(f"norm.{number}.weight", quiet), net.constant(f"norm.{number}.bias", bias)]
        return net.add("LayerNormalization", inputs, f"normed{number}", f"norm.{number}", axis=-1)

    for number in range(blocks):
        hidden = norm(value, number)
        if number:
            hidden = net.add("Mul", [hidden, net.constant(f"{number}.gain", 100.0)], f"gained{number}", "gain")
        up = net.values(f"{number}.up.weight", CHANNELS, 32, scale=0.4)
        hidden = net.add("MatMul", [hidden, up], f"up{number}", f"block.{number}.up")
        hidden = net.add("Relu", [hidden], f"hidden{number}", f"block.{number}")
        down = net.values(f"{number}.down.weight", 32, CHANNELS, scale=0.002)
        net.weights[down][:, 5] = 0.0 if number else loud / 32
        hidden = net.add("MatMul", [hidden, down], f"down{number}", f"block.{number}.down")
        value = net.add("Add", [value, hidden], f"add{number}", f"block.{number}")
    flat = net.add("Flatten", [norm(value, blocks)], "flat", axis=2)
    inputs = [flat, net.values("head.weight", 4, CHANNELS, scale=30.0), net.constant("head.bias", [0.0] * 4)]
    net.add("Gemm", inputs, "scores", "head", transB=1)
    return net.model(4)


def prepared(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """As the calibration pass leaves it: constants folded, shapes inferred."""
    onnx.save(model, folder / "source.onnx")
    quantize.prepare(folder / "source.onnx", folder / "prepared.onnx")
    return onnx.load(folder / "prepared.onnx")


def found_ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    return calibrate.ranges(model, frames(), "percentile-frames", 1, lambda _text: None)


def quantized(
    model: onnx.ModelProto, folder: Path, ranges: dict[str, tuple[float, float]], keep_float: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """INT8 as a CPU without VNNI gets it, without bias correction. The file is left at ``folder``/int8.onnx."""
    onnx.save(model, folder / "fp32.onnx")
    target = folder / "int8.onnx"
    quantize.lay_out(folder / "fp32.onnx", target, ranges, layout="u8s8-7bit", keep_float=frozenset(keep_float))
    return onnx.load(target)


class _Frames(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter([{"image": frame} for frame in frames()])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def quantized_by_the_book(
    model: onnx.ModelProto, folder: Path, ranges: dict[str, tuple[float, float]], keep_float: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """The same by ONNX Runtime's own writer, which puts Q/DQ pairs around whatever it can."""
    onnx.save(model, folder / "fp32.onnx")
    overrides = {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()}
    quantize_static(
        folder / "fp32.onnx",
        folder / "book.onnx",
        _Frames(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(keep_float),
        extra_options={"TensorQuantOverrides": overrides},
    )
    return onnx.load(folder / "book.onnx")
