"""Prunes one architecture, exports what is left, and prints what was found as a line of JSON: the name, and 1x3xHxW.

Needs timm; `benchmarks.prune_coverage` runs it in an environment that has it, in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from typing import Any

import onnxruntime
import torch

from benchmarks import timm_net
from compiler.child.export import to_onnx
from compiler.child.prune import Pruner
from compiler.child.pruning.cost import Cost

PARAMETERS, MACS, ROUND_TO = 0.35, 0.30, 8


def main(name: str, shape: list[int]) -> dict[str, Any]:
    """Takes the smallest ratio that is enough.

    Returns:
        parameters, macs: what is left, as shares.
        violation: how much units that change places change the output.
        frozen: operators without a rule.
        ratio, error: only if a ratio was enough; the error is ONNX Runtime's against the pruned net.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = timm_net.build(name, shape)
    picture = timm_net.pictures(1, shape)
    pruner = Pruner(model, picture)
    facts = {"violation": pruner.violation(model, picture), "frozen": pruner.frozen, "blocks": len(pruner.blocks)}
    choice = pruner.fit(parameters=PARAMETERS, macs=MACS, round_to=ROUND_TO)
    if choice is None:
        return facts | _shares(pruner.before, pruner.choose(0.9, ROUND_TO).after)
    pruned, record = pruner.carry_out(choice)
    del model
    return facts | {
        "ratio": record.ratio,
        **_shares(record.before, record.after),
        "error": exported_error(pruned, picture),
    }


def _shares(before: Cost, after: Cost) -> dict[str, float]:
    return {"parameters": after.parameters / before.parameters, "macs": after.macs / before.macs}


def exported_error(pruned: torch.nn.Module, picture: torch.Tensor) -> float:
    """Largest difference of ONNX Runtime from the pruned net, over its largest output."""
    with torch.no_grad():
        wanted = pruned(picture).numpy()
    program = to_onnx(pruned, list(picture.shape), "image", ["scores"], None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/net.onnx")  # a file may hold more than the two gigabytes of a message
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", options)
        (found,) = session.run(None, {"image": picture.numpy()})
    return float(abs(found - wanted).max() / abs(wanted).max())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [int(size) for size in sys.argv[2].split("x")])))
