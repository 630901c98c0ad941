"""What a fault is judged by: the truth about it, and what the compiler's own check of that hop says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from benchmarks.faults_nets import LIMIT, Net, Truth, answers
from compiler.evaluation import accuracy, compare, misread
from compiler.evaluation.accuracy import Run
from compiler.evaluation.compare import MIN_EXPORT_SQNR_DB
from compiler.package import ReleaseFolder, choose_proof_frames
from compiler.repair.repair import Mended
from skerry.disk import Disk
from skerry.errors import SkerryError
from skerry.execution import prove
from skerry.manifest import FLOOR, Interface

UNSHOWN = "that it holds cannot be shown"
_PROOF_S, _PROOF_MIB = 60.0, 4096


@dataclass(frozen=True)
class Judged:
    """One fault after its check.

    Attributes:
        truth: what it does to the metric; None where a rule says that it is wrong.
        refused: what the check said, or None.
        mended: how repair ended, where it was asked for.
        after: the truth about what was mended.
    """

    truth: Truth | None
    refused: str | None
    mended: Mended | None = None
    after: Truth | None = None

    @property
    def repaired(self) -> bool:
        """Within the hop's limit again and with the metric where it was; an INT8 model that is all fp32 is none."""
        if self.mended is None or self.after is None or self.after.moved:
            return False
        return self.mended.repair.float_units < self.mended.repair.units

    @property
    def moved(self) -> bool:
        return self.truth is None or self.truth.moved

    @property
    def verdict(self) -> str:
        """caught, missed, false alarm or tolerated."""
        if self.moved:
            return "caught" if self.refused else "MISSED"
        return "false alarm" if self.refused else "tolerated"


Injection = Callable[[], Judged]


def raised(act: Callable[[], object]) -> str | None:
    """What an act was refused with, or None. Only the compiler's and the device's own errors are a refusal."""
    try:
        act()
    except SkerryError as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def export_hop(net: Net, run: Run) -> str | None:
    """Torch to ONNX."""
    hop = compare.compare_model("export", net.reference, run, net.limits, MIN_EXPORT_SQNR_DB)
    return hop.failed


def variant_hop(net: Net, run: Run) -> str | None:
    """ONNX to a variant: the recipe's limits."""
    return compare.compare_model("variant", net.reference, run, net.limits, net.limits.min_sqnr_db).failed


def max_drop(net: Net, run: Run) -> str | None:
    """The accuracy of a variant on ``--eval``, held to ``--max-drop 1``."""
    said = answers(run, net.interface, net.eval.report)
    found = accuracy.compare(net.interface, net.eval.report, net.eval_answers, said)
    verdict = found.judge(LIMIT)
    if verdict.holds:
        return None
    said = f"--max-drop {LIMIT:g}: {found.drop.points:.2f} points, {found.drop.at_most:.2f} at most"
    return said if verdict.needs_more is None else f"{said}; {UNSHOWN}, needs {verdict.needs_more} more samples"


def eval_check(net: Net, interface: Interface, labelled: Path | None = None) -> str | None:
    """What labelled samples say about a recipe that reads the net as ``interface`` does."""
    from compiler.data import dataset  # noqa: PLC0415 - read anew: labels may be others

    folder = labelled or net.job.labelled
    assert folder is not None
    chosen, run = misread.asked(interface, dataset.read(folder, interface)), compare.on_backend(net.exported)
    return misread.doubt(interface, chosen, lambda view: answers(run, view, chosen))


def sound(net: Net) -> list[str]:
    """What a net without a fault is refused with: nothing, or no refusal here says anything."""
    runs = [compare.on_backend(path) for path in (net.exported, net.int8)]
    said = [
        compare.compare_preprocessing(net.reference, net.limits).failed,
        export_hop(net, runs[0]),
        variant_hop(net, runs[1]),
        eval_check(net, net.interface),
    ]
    return [f"{net.name}: {why}" for why in said if why]


# --- a bundle that proves itself --------------------------------------------------------------------------------------


def bundle(net: Net, root: Path) -> Path:
    """The net's release as the compiler packs it, with fp32 and INT8, signed; not yet bent."""
    disk = Disk()
    disk.remove_tree(root)
    folder = ReleaseFolder(root, disk)
    models = {"fp32": net.exported, "int8": net.int8}
    written = [folder.add_variant(plan, requires, models[plan.precision]) for plan, requires in net.job.plans]
    chosen = choose_proof_frames(net.interface, net.reference.answers, net.limits, net.job.recipe.proof.frames)
    proof = folder.add_proof(chosen, net.reference, net.limits, "not stated", "not stated")
    folder.finish(net.interface, written, proof)
    folder.sign(net.interface.name, net.job.key)
    return root


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what ``bundle.json`` says."""
    file = root / "bundle.json"
    values = msgspec.json.decode(file.read_bytes())
    change(values)
    file.write_bytes(msgspec.json.encode(values))


def proof(root: Path, variants: Mapping[str, object] | list[str]) -> str | None:
    """The release's own proof, in the process that a device starts."""
    request = prove.Request(
        root=str(root.resolve()), variants=list(variants), limits=FLOOR, threads=1, memory_mib=_PROOF_MIB
    )
    outcome = prove.run(request, _PROOF_S)
    return None if outcome.variant is not None else outcome.why


# --- bending graphs ---------------------------------------------------------------------------------------------------


def bent(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    """A changed copy."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    change(made)
    return made


def tensor(model: onnx.ModelProto, name: str) -> np.ndarray:
    """An initializer, as a copy."""
    return np.array(onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)))


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Another value for an initializer."""
    found = next(t for t in model.graph.initializer if t.name == name)
    found.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value, order="C"), name))


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    """The nodes of one operator, in order."""
    return [node for node in model.graph.node if node.op_type == kind]
