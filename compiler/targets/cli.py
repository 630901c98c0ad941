"""``skerry targets``: what each target can do, each fact with its source."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from compiler.targets import target
from compiler.targets.target import Fact, Target
from skerry.manifest import DeviceFacts

_ANY = DeviceFacts(arch="", cpu=[], backends=[])  # a target by name does not ask where it is read


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="skerry targets",
        description="Say what each target can do, each fact with its source.",
        epilog="skerry targets jetson-orin-nano@jp6.2 tells one in full",
    )
    p.add_argument("name", nargs="?", help="a target, name@system, or a .toml file of yours (default: all, in short)")
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `UsageError` for a target that there is not."""
    options = parser().parse_args(arguments)
    if options.name:
        print("\n".join(in_full(options.name, target.load(options.name, _here(options.name)))))
        return 0
    width = max(map(len, target.names()))
    for name in target.names():
        found = target.load(name, _ANY)
        print(f"{name:<{width}}  {found.description}")
        print(f"{'':<{width}}  {'; '.join(_in_short(found))}")
    print("skerry targets NAME tells one in full, with the source of each fact")
    return 0


def _here(name: str) -> DeviceFacts:
    """This machine, where the name is one that means it: then numpy and onnxruntime are looked at."""
    if name != target.NATIVE:
        return _ANY
    from skerry.execution.device import this_device

    return this_device()


def _in_short(found: Target) -> Iterator[str]:
    yield "builds " + ", ".join(plan.id for plan in found.variant)
    if found.gpu:
        yield f"SM {found.gpu.sm.value}"
    if found.system:
        yield "on " + ", ".join(f"@{system.name}" for system in found.system)


def in_full(name: str, found: Target) -> Iterator[str]:
    """One target, line by line."""
    yield f"{name}: {found.description}"
    yield f"  {'CPU':<11} {', '.join(found.arch)}"
    if found.gpu:
        yield from _fact("GPU", found.gpu.sm, "SM {}")
        yield from _fact("precisions", found.gpu.precisions)
        yield from _fact("DLA", found.gpu.dla)
        yield from _fact("memory", found.gpu.memory_gib, "{} GiB")
        yield f"  {'engine':<11} {_engine(found)}"
    for system in found.system:
        linux = f"Jetson Linux {' or '.join(system.l4t)}, " if system.l4t else ""
        cuda = f", CUDA {system.cuda}" if system.cuda else ""
        yield f"  @{system.name:<10} {linux}TensorRT {system.tensorrt} to below {system.below}{cuda}"
        yield f"  {'':<11}   {system.source}"
    for plan in found.variant:
        needs = f", needs {', '.join(plan.cpu)}" if plan.cpu else ""
        beside = f"; ships where it is measured faster than {plan.beside}" if plan.beside else ""
        yield f"  {plan.id:<11} {plan.precision} on {plan.backend}{needs}{beside}"
        yield f"  {'':<11}   {plan.source}"


def _fact(
    what: str, fact: Fact[str] | Fact[int] | Fact[list[str]] | Fact[list[int]] | None, form: str = "{}"
) -> Iterator[str]:
    if fact is None:
        return
    value = fact.value
    text = " or ".join(map(str, value)) if isinstance(value, list) and what == "memory" else value
    yield f"  {what:<11} {form.format(', '.join(map(str, text)) if isinstance(text, list) else text)}"
    yield f"  {'':<11}   {fact.source}"


def _engine(found: Target) -> str:
    build, where = (
        found.build,
        "here, without a GPU" if _is_rtx(found) else "on the device, from the recipe in the bundle",
    )
    core = "GPU" if build.dla_core is None else f"DLA core {build.dla_core}"
    return f"built {where}: workspace {build.workspace_mib} MiB, level {build.level}, {core}"


def _is_rtx(found: Target) -> bool:
    return any(plan.backend == "tensorrt-rtx" for plan in found.variant)
