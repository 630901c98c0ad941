"""Which device is in which wave: pure, from the sizes that an operator gave."""

from __future__ import annotations

import math
from collections.abc import Sequence

from skerry.errors import UsageError


def plan(devices: Sequence[str], canary: str, waves: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Cuts ``devices`` into waves, in their order.

    Args:
        canary: size of the first wave: a count, or a share of all such as "5%"; "0" for none.
        waves: how far each later wave reaches, counted from the first device on: counts or shares, rising.

    Raises:
        UsageError: a size that is none, or sizes that do not rise.
    """
    reaches = [_reach(canary, len(devices), "canary")] + [_reach(size, len(devices), "waves") for size in waves]
    for size, before, reach in zip(waves, reaches, reaches[1:], strict=False):
        if reach < before:
            raise UsageError(f"waves: {size} reaches {reach} devices, the wave before it {before}; sizes must rise")
    cut = [tuple(devices[start:end]) for start, end in zip([0, *reaches], reaches, strict=False)]
    return tuple(wave for wave in cut if wave)


def _reach(size: str, total: int, what: str) -> int:
    """How many devices a size means; a share is rounded up, so that a small one is not nobody."""
    number = size.removesuffix("%")
    try:
        value = float(number) if size.endswith("%") else int(number)
    except ValueError:
        raise UsageError(
            f"{what}: {size[:40]!r} is no size; expected a count such as 3, or a share such as 25%"
        ) from None
    if not 0 <= value <= (100 if size.endswith("%") else math.inf):
        raise UsageError(f"{what}: {size[:40]!r} is out of range; expected a count from 0, or a share up to 100%")
    return min(total, math.ceil(value * total / 100) if size.endswith("%") else int(value))
