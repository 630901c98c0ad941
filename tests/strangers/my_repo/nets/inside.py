"""The same net from inside a package: its neighbour by a relative import, the root's packages by absolute ones."""

import torch
from torch import nn

from compiler.ops import swish

from .parts import Backbone


class Net(nn.Module):
    """[1, 3, 32, 32] to scores [1, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(swish(self.backbone(x)).mean((2, 3)))


def build() -> nn.Module:
    """What the command line names."""
    return Net()
