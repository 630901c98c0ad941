"""A face detector as a stranger brings it: one file, written for the published weights and for nothing of Skerry's.

The weights are those of "version-RFB-320" (Ultra-Light-Fast-Generic-Face-Detector, MIT); this code is ours, derived
from the names and shapes in the state dict and from the published ONNX graph. A narrow depthwise-separable trunk, one
receptive-field block (Liu et al., "Receptive Field Block Net", ECCV 2018), and SSD heads at four strides.
"""

import numpy as np
import torch
from torch import nn

HEIGHT, WIDTH = 240, 320
# Per head: the stride of its feature map, and the sides of its square priors in input pixels.
PRIORS = ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256)))
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2

# Output channels and stride of the trunk's separable layers; the receptive-field block stands behind the first six.
_BEFORE = ((32, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1))
_BEHIND = ((128, 2), (128, 1), (128, 1), (256, 2), (256, 1))
_TAPS = (7, 10, 12)  # trunk layers whose output a head reads; the fourth head reads the extra layer


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A filter for each channel, then a mix of channels, each normalized."""
    each = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    mix = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(each, nn.BatchNorm2d(inputs), nn.ReLU(), mix, nn.BatchNorm2d(outputs), nn.ReLU())


def plain_separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """The same with biases instead of normalization, and nothing behind it."""
    each = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
    return nn.Sequential(each, nn.ReLU(), nn.Conv2d(inputs, outputs, 1))


class Normalized(nn.Module):
    """Convolution and batch norm; ``reach`` is its dilation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, reach: int = 1, *, relu: bool = False) -> None:
        super().__init__()
        pad = reach * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=pad, dilation=reach, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x))
        return torch.relu(x) if self.relu else x


class ReceptiveField(nn.Module):
    """Three branches that look 2, 3 and 5 pixels far, mixed and added to a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(
            Normalized(64, 8, 1), Normalized(8, 16, 3, relu=True), Normalized(16, 16, 3, reach=2)
        )
        self.branch1 = nn.Sequential(
            Normalized(64, 8, 1), Normalized(8, 16, 3, relu=True), Normalized(16, 16, 3, reach=3)
        )
        self.branch2 = nn.Sequential(
            Normalized(64, 8, 1),
            Normalized(8, 12, 3, relu=True),
            Normalized(12, 16, 3, relu=True),
            Normalized(16, 16, 3, reach=5),
        )
        self.ConvLinear = Normalized(48, 64, 1)  # the state dict's name
        self.shortcut = Normalized(64, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        return torch.relu(self.ConvLinear(seen) + self.shortcut(x))


def priors() -> torch.Tensor:
    """[N, 4]: centre and size of every prior box, as fractions of the input, in the heads' order."""
    boxes = []
    for stride, sides in PRIORS:
        rows, columns = -(-HEIGHT // stride), -(-WIDTH // stride)
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) / columns, (row + 0.5) / rows  # the middle of a cell, also where a map overhangs
                boxes += [(x, y, side / WIDTH, side / HEIGHT) for side in sides]
    return torch.tensor(boxes).clamp(0.0, 1.0)


class FaceDetector(nn.Module):
    """[1, 3, 240, 320] to scores [1, 4420, 2] (nothing, face) and boxes [1, 4420, 4] (corners, fractions)."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        trunk: list[nn.Module] = [first]
        channels = 16
        for outputs, stride in _BEFORE:
            trunk.append(separable(channels, outputs, stride))
            channels = outputs
        trunk.append(ReceptiveField())
        for outputs, stride in _BEHIND:
            trunk.append(separable(channels, outputs, stride))
            channels = outputs
        self.base_net = nn.ModuleList(trunk)
        self.extras = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(256, 64, 1), nn.ReLU(), plain_separable(64, 256, 2), nn.ReLU())]
        )
        self.classification_headers = _heads(2)
        self.regression_headers = _heads(4)
        self.register_buffer("priors", priors(), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = []
        for number, layer in enumerate(self.base_net):
            x = layer(x)
            if number in _TAPS:
                maps.append(x)
        maps.append(self.extras[0](x))
        scores = _flat(self.classification_headers, maps, 2)
        offsets = _flat(self.regression_headers, maps, 4)
        return scores.softmax(2), self.corners(offsets)

    def corners(self, offsets: torch.Tensor) -> torch.Tensor:
        """Boxes from offsets to the priors: SSD's coding with its two variances."""
        centre, size = self.priors[:, :2], self.priors[:, 2:]
        middle = centre + CENTRE_VARIANCE * offsets[..., :2] * size
        half = torch.exp(SIZE_VARIANCE * offsets[..., 2:]) * size / 2
        return torch.cat([middle - half, middle + half], 2)


def _heads(values: int) -> nn.ModuleList:
    """One head per feature map, ``values`` per prior; the last is a plain convolution."""
    channels, counts = (64, 128, 256), [values * len(sides) for _, sides in PRIORS]
    near = [plain_separable(inputs, outputs) for inputs, outputs in zip(channels, counts, strict=False)]
    return nn.ModuleList([*near, nn.Conv2d(256, counts[-1], 3, padding=1)])


def _flat(heads: nn.ModuleList, maps: list[torch.Tensor], values: int) -> torch.Tensor:
    """[1, N, values] over all maps, row by row, prior by prior."""
    found = [head(seen).permute(0, 2, 3, 1).reshape(1, -1, values) for head, seen in zip(heads, maps, strict=True)]
    return torch.cat(found, 1)


def build() -> nn.Module:
    """What the recipe names."""
    return FaceDetector()


def preprocess(frame: np.ndarray) -> np.ndarray:
    """What the published weights expect: plain bilinear to 320x240 in whole numbers, then (x - 127) / 128."""
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    scaled = nn.functional.interpolate(pixels, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return ((scaled.round() - 127) / 128).numpy()
