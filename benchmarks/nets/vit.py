"""A small vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021), pre-norm."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Attention between patches, then two layers on each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, patches, width = x.shape
        parts = self.mix(self.norm1(x)).reshape(count, patches, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.project(seen.transpose(1, 2).reshape(count, patches, width))
        return x + self.narrow(functional.gelu(self.widen(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 7x7 of a 28x28 image in grey."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.place
        return self.scores(self.norm(self.blocks(x)).mean(1))


def fashion() -> nn.Module:
    """What the recipe names."""
    return VisionTransformer()
