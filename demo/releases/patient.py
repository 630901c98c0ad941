"""Release 4: MobileNetV2 that looks at sixteen shifted copies of each frame and averages what it sees.

A tempting idea from a notebook: steadier answers, the same weights. Each proof frame agrees with torch. It is also
sixteen times the work, which no file shows, and no camera forgives.
"""

import torch
from model import MobileNetV2, preprocess

__all__ = ["build", "preprocess"]

_SHIFTS = [(dy, dx) for dy in (-3, -1, 1, 3) for dx in (-3, -1, 1, 3)]


class Patient(MobileNetV2):
    """[1, 3, 224, 224] to 1000 logits, the mean over the shifted copies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        copies = torch.cat([torch.roll(x, shift, (2, 3)) for shift in _SHIFTS])
        return super().forward(copies).mean(0, keepdim=True)


def build() -> torch.nn.Module:
    """What the recipe names."""
    return Patient()
