"""Targets, as data: what a device can run and how a model is built for it, each fact with its source."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import msgspec

from skerry.config import convert, read_toml
from skerry.errors import UsageError
from skerry.manifest import Accelerator, DeviceFacts, Requires, VariantId, numbers

_FOLDER = Path(__file__).parent
NATIVE = "native"
OLDEST = "10.3"  # TensorRT; older ones do not take a strongly typed graph of opset 20
# Boards whose last system has too old a TensorRT (OE4T/meta-tegra, tensorrt-core of its L4T 32 and 35 branches).
_TOO_OLD = {
    "xavier": "JetPack 5.1, with TensorRT 8.5",
    "jetson-nano": "JetPack 4.6, with TensorRT 8.2",
    "tx2": "JetPack 4.6, with TensorRT 8.2",
    "tx1": "JetPack 4.6, with TensorRT 8.2",
}
T = TypeVar("T")


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How TensorRT builds an engine.

    Attributes:
        workspace_mib: what its kernels may take to work in. TensorRT's default is all memory, which a Jetson shares.
        level: 0 to 5, TensorRT's ``builder_optimization_level``.
        dla_core: on which accelerator it runs; null is the GPU.
    """

    workspace_mib: Annotated[int, msgspec.Meta(ge=16)] = 1024
    level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    dla_core: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Fact(msgspec.Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """Something that is so, and where that is written."""

    value: T
    source: str


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the GPU of a target can do.

    Attributes:
        sm: compute capability, "8.7".
        precisions: what its tensor cores compute in.
        dla: deep learning accelerators beside it, in the least model of the family.
        memory_gib: by model of the family, shared with the CPU on a Jetson.
    """

    sm: Fact[str]
    precisions: Fact[list[str]]
    dla: Fact[int] | None = None
    memory_gib: Fact[list[int]] | None = None


class System(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Software that a target comes with, "jp6.2": which TensorRT, and up to which it may be exchanged."""

    name: str
    tensorrt: str
    below: str
    source: str
    cuda: str = ""
    l4t: list[str] = []


class VariantPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to build a model.

    Attributes:
        layout: how int8 lies in the file (compiler/quantization/quantize.py); "explicit" is TensorRT's; "float" if
            nothing is quantized.
        source: why it is built so, for a reader.
        beside: the variant whose file it is on another runtime. Such a one is an offer: it ships only where it can be
            measured, and is faster than that one.
        build: how TensorRT is to build it; null takes the target's.
    """

    id: VariantId
    backend: Literal["onnxrt", "openvino", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4", "nvfp4"]
    source: str
    cpu: list[str] = []
    layout: Literal["float", "u8s8", "u8s8-7bit", "s8s8", "dynamic", "explicit"] = "float"
    beside: VariantId | None = None
    build: Build | None = None

    @property
    def for_tensorrt(self) -> bool:
        """An engine is built of it; all others run from their ONNX file, on a CPU."""
        return self.backend.startswith("tensorrt")

    def __post_init__(self) -> None:
        if (self.precision == "int8") != (self.layout != "float") and self.layout != "explicit":
            raise ValueError(
                f"precision {self.precision!r} does not go with layout {self.layout!r}; int8 wants one of u8s8 (VNNI), "
                "u8s8-7bit (any x86-64), s8s8 (arm64), dynamic (linear layers), explicit (TensorRT); the rest has none"
            )
        if not self.for_tensorrt and self.precision not in ("fp32", "int8"):
            raise ValueError(f"{self.backend} runs fp32 and int8, not {self.precision}")


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device, and what to build for it.

    Attributes:
        build: how TensorRT is to build, where it does.
        system: what it may run; one of them is chosen as ``name@system``.
    """

    description: str
    arch: list[str]
    variant: Annotated[list[VariantPlan], msgspec.Meta(min_length=1)]
    gpu: Gpu | None = None
    system: list[System] = []
    build: Build = Build()

    def __post_init__(self) -> None:
        for number, plan in enumerate(self.variant):
            if plan.beside is not None and plan.beside not in [p.id for p in self.variant[:number]]:
                raise ValueError(f"{plan.id} stands beside {plan.beside!r}, which is no variant before it")

    def requires(self, plan: VariantPlan) -> Requires:
        if not plan.for_tensorrt:
            return Requires(arch=[] if plan.precision == "fp32" else self.arch, cpu=plan.cpu)
        return Requires(arch=self.arch, cpu=plan.cpu, accelerators=self._accelerators())

    def planned(self, plan: VariantPlan) -> VariantPlan:
        """``plan`` with all that the target says about building it."""
        if not plan.for_tensorrt or plan.build is not None:
            return plan
        return msgspec.structs.replace(plan, build=self.build)

    def _accelerators(self) -> list[Accelerator]:
        return [
            Accelerator(sm=self.gpu.sm.value, at_least=s.tensorrt, below=s.below, l4t=s.l4t, system=s.name)
            for s in self.system
            if self.gpu
        ]


def names() -> list[str]:
    """The targets that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str, facts: DeviceFacts) -> Target:
    """The target called ``name``, or in the file ``name``; "native" is the one that suits this machine.

    ``name@system`` is the target with that system alone; without one it is for all those that its variants run on.

    Raises:
        UsageError: there is no such target, or it has no such system.
    """
    name, _, system = name.partition("@")
    if name == NATIVE:
        name = native(facts)
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            f"unknown target {name!r}; {_hint(name, [NATIVE, *names()])}there are: {', '.join([NATIVE, *names()])}, "
            "or a .toml file of yours"
        )
    target = convert(read_toml(path), Target, str(path))
    return _on(target, name, system) if system else _on_all(target)


def _hint(name: str, known: Sequence[str]) -> str:
    """What whoever wrote ``name`` probably means; of ``known``, the ones with all its words, else the nearest."""
    words = name.lower().split("-")
    for board, last in _TOO_OLD.items():
        if set(board.split("-")) <= set(words) and "orin" not in words:
            return f"its last system is {last}, and TensorRT {OLDEST} is the oldest; arm64 is for its CPU; "
    close = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
    near = [k for k in known if all(word in k for word in words)] or [k for k in known if k in words] or close
    return f"did you mean {' or '.join(near)}? " if near and name else ""


def _on(target: Target, name: str, system: str) -> Target:
    chosen = [s for s in target.system if s.name == system]
    if not chosen:
        known = ", ".join(f"{name}@{s.name}" for s in target.system)
        hint = _hint(system, [s.name for s in target.system])
        raise UsageError(
            f"target {name} knows no {system!r}; {hint}{f'there are: {known}' if known else 'it has no versions'}"
        )
    return msgspec.structs.replace(target, system=chosen)


def _on_all(target: Target) -> Target:
    """Without the systems that are too old for what is built: they are known only to be refused by name."""
    able = [s for s in target.system if numbers(s.tensorrt) >= numbers(OLDEST) or "tensorrt-rtx" in _backends(target)]
    return msgspec.structs.replace(target, system=able)


def _backends(target: Target) -> set[str]:
    return {plan.backend for plan in target.variant}


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
    """What to build for several targets together, each variant once; it then runs on any of them."""
    found: dict[str, tuple[VariantPlan, Requires]] = {}
    for target in targets:
        for written in target.variant:
            plan, requires = target.planned(written), target.requires(written)
            if plan.id in found:
                plan, requires = _modest(found[plan.id][0], plan), _either(found[plan.id][1], requires)
            found[plan.id] = (plan, requires)
    return list(found.values())


def _modest(one: VariantPlan, other: VariantPlan) -> VariantPlan:
    """The first of two plans of a shared variant, with the workspace of the smaller device."""
    if one.build is None or other.build is None:
        return one
    least = min(one.build, other.build, key=lambda build: build.workspace_mib)
    return msgspec.structs.replace(one, build=least)


def _either(one: Requires, other: Requires) -> Requires:
    """What either asks for, of two targets that share a variant: they differ in their accelerators alone."""
    if not one.accelerators or not other.accelerators:
        return one
    added = [a for a in other.accelerators if a not in one.accelerators]
    return msgspec.structs.replace(one, accelerators=[*one.accelerators, *added])
