"""Makes ``benchmarks/architectures.txt``: which of timm's architectures the coverage benchmark compiles.

    build/bench/venvs/timm/bin/python benchmarks/list_architectures.py > benchmarks/architectures.txt

The rule: a family is a module of ``timm.models`` that registers architectures. In alphabetical order of the families,
the smallest of each, by parameters as ``create_model(name)`` builds it, ties by name. Deprecated names do not count,
nor do ``test_*``: timm's fixtures, a few layers of what the family really builds. timm 1.0.31 has fewer than 100
families, so the list goes round again with the second smallest of each until it has 100. The input size is the
architecture's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

import torch

COUNT = 100


def allow_torchvision() -> torch.library.Library:
    """Declares the two operators that PyPI's torchvision wants at import and lacks beside a torch without CUDA.

    What it returns must live as long as torchvision is used.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # there already: a torchvision that fits this torch
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def families() -> dict[str, list[str]]:
    """The names that each family registers, without those that do not count."""
    from timm.models import _registry  # noqa: PLC0415 - after `allow_torchvision`

    gone = set(_registry._deprecated_models)  # noqa: SLF001 - timm has no public list of its families
    found = _registry._module_to_models  # noqa: SLF001
    return {family: sorted(n for n in names if n not in gone and n[:5] != "test_") for family, names in found.items()}


def parameters(name: str) -> int | None:
    """How many ``name`` has; None if it cannot be built without memory (then it is too large to be the smallest)."""
    import timm  # noqa: PLC0415 - after `allow_torchvision`

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception as exc:  # noqa: BLE001 - whatever it is, a person must look at it
        print(f"{name}: {type(exc).__name__}: {exc}", file=sys.stderr)
        return None


def input_size(name: str) -> str:
    """As the command line wants it: 1x3x224x224."""
    import timm  # noqa: PLC0415 - after `allow_torchvision`

    return "x".join(map(str, (1, *timm.get_pretrained_cfg(name).input_size)))


def rounds(ranked: dict[str, list[tuple[int, str]]]) -> Iterator[tuple[str, int, str]]:
    """Family, parameters, name: the smallest of every family, then the second smallest, and so on."""
    for place in range(max(map(len, ranked.values()))):
        for family, found in sorted(ranked.items()):
            if place < len(found):
                yield family, *found[place]


def main() -> None:
    """Prints the list."""
    keep = allow_torchvision()
    ranked = {}
    for family, names in sorted(families().items()):
        sizes = [(count, name) for name in names if (count := parameters(name)) is not None]
        ranked[family] = sorted(sizes)
        print(family, *(f"{name} {count}" for count, name in ranked[family][:2]), file=sys.stderr)
    print("# Made by scripts/list_architectures.py, which has the rule: family, parameters, input, architecture.")
    for family, count, name in list(rounds(ranked))[:COUNT]:
        print(f"{family}\t{count}\t{input_size(name)}\t{name}")
    del keep


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
