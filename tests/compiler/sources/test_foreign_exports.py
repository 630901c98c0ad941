"""What torch's own exporters wrote over the years: small nets at every opset that the legacy one knows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from compiler.child import foreign_entry, foreign_read
from compiler.child.adopt import adopt
from compiler.child.foreign_run import Wish

pytestmark = pytest.mark.slow

SHAPE = [1, 3, 32, 32]


class Convolutions(nn.Module):
    """Batch norm, ReLU6, depthwise, hard swish, bilinear upsampling, padding, slicing, mean, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.each, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 4)

    def forward(self, x):
        y = functional.relu6(self.norm(self.conv(x)))
        y = y + functional.hardswish(self.each(y))
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = functional.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]
        return self.head(y.mean((2, 3))).softmax(-1)


class Attention(nn.Module):
    """Patches, layer norm, attention, GELU: reshapes by sizes that are read at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x):
        y = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        batch, count, width = y.shape
        q, k, v = self.qkv(y).reshape(batch, count, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        z = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(batch, count, width)
        return self.head(functional.gelu(z + y).mean(1))


class Assorted(nn.Module):
    """Transposed convolution, clamp, nearest resize to a size, chunks, gates, dropout, pooling, squeeze."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.drop = nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 2, 2), nn.Dropout()
        self.head = nn.Linear(196, 4)

    def forward(self, x):
        y = functional.interpolate(torch.clamp(self.up(self.conv(x)), -1, 1), size=(15, 15), mode="nearest")
        a, b = y.chunk(2, 1)
        y = self.drop(torch.cat([a * torch.sigmoid(b), b], 1))
        return self.head(functional.max_pool2d(y, 2).flatten(1).unsqueeze(0)).squeeze(0)


# Upsample to less than half: opset 9's operator cannot, and ONNX Runtime refuses the file itself.
NOT_THERE = {("Assorted", 9)}


@pytest.mark.parametrize("open_batch", [False, True], ids=["batch 1", "any batch"])
@pytest.mark.parametrize("opset", range(9, 21))
@pytest.mark.parametrize("net", [Convolutions, Attention, Assorted])
def test_an_export_of_any_age_is_adopted(net, opset, open_batch, tmp_path):
    if (net.__name__, opset) in NOT_THERE or (net is Assorted and opset == 10 and open_batch):
        pytest.skip("the exporter or ONNX Runtime itself does not take it")
    torch.manual_seed(0)
    model, path = net().eval(), tmp_path / "net.onnx"
    axes = {"image": {0: "n"}, "scores": {0: "n"}} if open_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # legacy, and says so
        torch.onnx.export(
            model,
            (torch.zeros(SHAPE),),
            str(path),
            opset_version=opset,
            dynamo=False,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes=axes,
        )

    _, adopted = adopt(path, Wish(SHAPE, "image", batch=(1, 5) if open_batch else None))

    if opset < 11:
        return  # there the exporter itself left torch: until opset 11, Resize knew no half pixels
    image = np.random.default_rng(1).random((5 if open_batch else 1, *SHAPE[1:]), np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(adopted.run()(image)["scores"], wanted, rtol=1e-3, atol=1e-5)


# Architectures of the first model zoo, with made-up weights: they come with the onnx package.
ZOO = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("light_*.onnx"))


@pytest.mark.skipif(not ZOO, reason="this onnx package brings no test data")
@pytest.mark.parametrize(
    "path",
    [p for p in ZOO if p.stem.removeprefix("light_") in ("squeezenet", "shufflenet", "inception_v1", "resnet50")],
    ids=lambda path: path.stem,
)
def test_the_first_zoo_is_adopted(path):
    model = foreign_read.parse(path)
    shape = foreign_entry.bind(foreign_entry.entry(model, path.name), None, path.name)

    _, adopted = adopt(path, Wish(shape, "image", ["scores"]))

    assert [v.name for v in adopted.model.graph.output] == ["scores"]
    assert not {t.name for t in adopted.model.graph.initializer} & {v.name for v in adopted.model.graph.input}
