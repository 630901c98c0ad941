"""An activation that the stranger's net cannot do without."""

import tests.util
import torch


def swish(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x), with help from another package of this repository."""
    return x * torch.sigmoid(x) * 2 * tests.util.half()
