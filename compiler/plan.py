"""``plan.json``: everything that a compilation decided, so that ``--plan`` builds the same files without searching.

A plan holds decisions and the digests of what they were made for. It is replayed for exactly that: the same code,
weights, recipe and calibration frames, by the same tools. Same plan, same model files, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from compiler.pruning.prune import Cut
from skerry.bundle import read_file
from skerry.disk import Disk
from skerry.documents import parse
from skerry.errors import BundleError, FormatError, PlanError
from skerry.manifest import Sha256, VariantId

FORMAT: Literal["skerry.plan/1"] = "skerry.plan/1"
PATH = "evidence/plan.json"  # in the bundle


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one variant is built.

    Attributes:
        layout: as `compiler.targets.target.VariantPlan` has it.
        calibration: the method that the ranges are found by; null where nothing is quantized.
        keep_float: names of the nodes of the prepared fp32 graph that are not quantized.
        repaired: it was out of tolerance and was mended (compiler/repair/repair.py); a replay mends it again.
        pruning: digest of the pruning record that the model was cut by; null for the whole model.
        digest: of the model file that came of it, so that a replay can be held to it.
    """

    id: VariantId
    backend: str
    precision: str
    layout: str
    calibration: str | None = None
    keep_float: list[str] = []
    repaired: bool = False
    pruning: Sha256 | None = None
    digest: Sha256 | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The decisions of a compilation.

    Attributes:
        inputs: digests by name: code, weights, recipe, calibration, and whatever else decides the bytes.
        tools: versions by name.
        variants: what is built.
        left_out: why, by variant that was searched and does not ship.
        pruned: how the net was pruned that all variants are made of; null for the whole one.
        searched: digests of what was only searched with (the labelled samples): a replay does not need it.
    """

    format: Literal["skerry.plan/1"] = FORMAT
    inputs: dict[str, Sha256]
    tools: dict[str, str]
    variants: list[Decision]
    left_out: dict[str, str] = {}
    pruned: Cut | None = None
    searched: dict[str, Sha256] = {}

    def decision(self, variant: str) -> Decision | None:
        """What is built for a variant; None if it does not ship."""
        return next((d for d in self.variants if d.id == variant), None)


def write(plan: Plan, path: Path, disk: Disk) -> None:
    """Writes a plan for people to read and to keep beside their code: the same plan, the same bytes."""
    disk.replace(path, msgspec.json.format(msgspec.json.encode(plan, order="deterministic")) + b"\n")


def read(path: Path) -> Plan:
    """A plan from a file of its own, or from the bundle that was made with it.

    Raises:
        PlanError: not there, or no plan of this format.
    """
    try:
        raw = read_file(path, PATH) if path.is_dir() or path.suffix == ".skb" else path.read_bytes()
        return parse(raw, Plan, str(path))
    except (OSError, BundleError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise PlanError(f"cannot read the plan {path}: {why}; each compilation leaves one in its bundle") from exc
    except FormatError as exc:
        raise PlanError(f"{exc}; expected a plan in the format {FORMAT}") from exc


def check(plan: Plan, inputs: Mapping[str, str], tools: Mapping[str, str]) -> None:
    """Holds a plan to what it would be replayed on.

    Raises:
        PlanError: something differs; the message names each.
    """
    differing = [
        f"{name} ({_short(plan.inputs.get(name))} in the plan, {_short(inputs.get(name))} here)"
        for name in sorted({*plan.inputs, *inputs})
        if plan.inputs.get(name) != inputs.get(name)
    ]
    if differing:
        raise PlanError(f"the plan was made for other inputs: {', '.join(differing)}; search again without --plan")
    other = [
        f"{name} {plan.tools.get(name, 'none')} in the plan, {tools.get(name, 'none')} here"
        for name in sorted({*plan.tools, *tools})
        if plan.tools.get(name) != tools.get(name)
    ]
    if other:
        raise PlanError(
            f"the plan was made by other tools, which may write other bytes: {', '.join(other)}; install those, or "
            "search again without --plan"
        )


def check_variants(plan: Plan, wanted: Sequence[str]) -> None:
    """A plan decides for the targets that it was made for.

    Raises:
        PlanError: it says nothing about one of the ``wanted`` variants.
    """
    known = {d.id for d in plan.variants} | set(plan.left_out)
    if missing := [variant for variant in wanted if variant not in known]:
        raise PlanError(
            f"the plan decides nothing for {', '.join(missing)}, only for {', '.join(sorted(known))}: name the targets "
            "that it was made for, or search again without --plan"
        )


def check_bytes(plan: Plan, digests: Mapping[str, str]) -> None:
    """Holds the model files of a replay to those that the plan was made with.

    Raises:
        PlanError: one differs: another kind of machine, as a rule.
    """
    for variant, digest in digests.items():
        decision = plan.decision(variant)
        if decision is not None and decision.digest is not None and decision.digest != digest:
            raise PlanError(
                f"{variant} came out as {_short(digest)}, the plan has {_short(decision.digest)}: the same decisions "
                "gave other bytes here, so this is another kind of machine than the plan's; search again on it"
            )


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
