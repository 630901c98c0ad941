"""A small classifier as a stranger brings it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


class Block(nn.Module):
    """Convolve, normalize, rectify."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Colours(nn.Module):
    """[1, 3, 32, 32] to scores [1, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(3, 16), Block(16, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def build() -> nn.Module:
    """Leaves a mark, so that a test sees whether this code ran."""
    Path(__file__).with_name("built").touch()
    return Colours()


def preprocess(frame: np.ndarray) -> np.ndarray:
    """What the net was trained behind: stretched by Pillow, red first, each colour with its own mean and deviation."""
    image = Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    return ((pixels - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]).transpose(2, 0, 1)
