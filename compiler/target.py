"""Targets, as data: what a device can run and how a model is built for it, each fact with its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from skerry.config import convert, read_toml
from skerry.errors import UsageError
from skerry.manifest import DeviceFacts, Requires, VariantId

_FOLDER = Path(__file__).parent / "targets"
NATIVE = "native"


class VariantPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to build a model.

    Attributes:
        layout: how int8 lies in the file, for which kernels (compiler/quantize.py); "float" if nothing is quantized.
        source: why it is built so, for a reader.
    """

    id: VariantId
    backend: Literal["onnxrt"]
    precision: Literal["fp32", "int8"]
    source: str
    cpu: list[str] = []
    layout: Literal["float", "u8s8", "u8s8-7bit", "s8s8", "dynamic", "explicit"] = "float"

    def __post_init__(self) -> None:
        if (self.precision == "int8") != (self.layout != "float"):
            raise ValueError(
                f"precision {self.precision!r} does not go with layout {self.layout!r}; int8 wants one of u8s8 (VNNI), "
                "u8s8-7bit (any x86-64), s8s8 (arm64), dynamic (linear layers); what is not int8 has none"
            )


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device, and what to build for it."""

    description: str
    arch: list[str]
    variant: Annotated[list[VariantPlan], msgspec.Meta(min_length=1)]

    def requires(self, plan: VariantPlan) -> Requires:
        return Requires(arch=[] if plan.precision == "fp32" else self.arch, cpu=plan.cpu)


def names() -> list[str]:
    """The targets that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str, facts: DeviceFacts) -> Target:
    """The target called ``name``, or in the file ``name``; "native" is the one that suits this machine.

    Raises:
        UsageError: there is no such target.
    """
    if name == NATIVE:
        name = native(facts)
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            f"unknown target {name!r}; there are: {', '.join([NATIVE, *names()])}, or a .toml file of yours"
        )
    return convert(read_toml(path), Target, str(path))


def native(facts: DeviceFacts) -> str:
    """The name of the target that this machine is."""
    if facts.arch == "aarch64":
        return "arm64"
    if facts.arch != "x86_64":
        raise UsageError(
            f"no target describes this machine ({facts.arch}); name one with --target: {', '.join(names())}"
        )
    return "x86-64-vnni" if "vnni" in facts.cpu else "x86-64"


def plans(targets: Sequence[Target]) -> list[tuple[VariantPlan, Requires]]:
    """What to build for several targets together, each variant once."""
    found: dict[str, tuple[VariantPlan, Requires]] = {}
    for target in targets:
        for plan in target.variant:
            found.setdefault(plan.id, (plan, target.requires(plan)))
    return list(found.values())
