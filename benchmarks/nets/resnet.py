"""Residual nets (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) with two-layer blocks."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions with a way around."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.around = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.around(x))


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the size, the mean, a layer of scores."""

    def __init__(self, stem: nn.Module, widths: list[int], depth: int, classes: int) -> None:
        super().__init__()
        self.stem, inputs, blocks = stem, widths[0], []
        for stage, outputs in enumerate(widths):
            for place in range(depth):
                blocks.append(Block(inputs, outputs, 2 if stage and not place else 1))
                inputs = outputs
        self.blocks, self.scores = nn.Sequential(*blocks), nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scores(self.blocks(self.stem(image)).mean((2, 3)))


def fashion() -> nn.Module:
    """For 28x28 in grey."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return ResNet(stem, [16, 32, 64], 2, 10)


def _resnet18(classes: int) -> ResNet:
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return ResNet(stem, [64, 128, 256, 512], 2, classes)


def clothing() -> nn.Module:
    """The well-known size for ten classes of clothing."""
    return _resnet18(10)


def resnet18() -> nn.Module:
    """The well-known size, at random: for timing. Its norms have seen random pictures, so that values stay in range."""
    torch.manual_seed(0)
    net = _resnet18(1000)
    sizes = (4, 8, 16, 32, 64, 128)
    pictures = sum(functional.interpolate(torch.randn(8, 3, n, n), (224, 224), mode="bilinear") for n in sizes)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the plain mean over what is seen
    with torch.no_grad():
        spread = net.train()(pictures / pictures.std()).std()
        net.scores.weight *= 10 / spread  # as sure of its answers as a trained net
    return net
