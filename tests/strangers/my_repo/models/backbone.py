"""The layers."""

import torch
from torch import nn

from compiler.ops import swish


class Backbone(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, 16, 3, padding=1)
        self.far = nn.Conv2d(16, 32, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return swish(self.far(swish(self.near(x))))
