"""What `benchmarks.prune_one` does, by Torch-Pruning as it comes: group magnitude (L2), channels in eights.

As it comes: the classifier keeps its scores, attention with a fused ``qkv`` is named to it with its heads and gets its
new width written back afterwards, as Torch-Pruning's own examples for timm do; nothing else is said about any net.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from typing import Any

import torch
import torch_pruning

from benchmarks import timm_net
from benchmarks.prune_one import MACS, PARAMETERS, ROUND_TO, exported_error

_RATIOS = [percent / 100 for percent in range(20, 75, 5)]


def main(name: str, shape: list[int]) -> dict[str, Any]:
    """Takes the smallest ratio that is enough, in steps of five hundredths; facts as `benchmarks.prune_one`'s."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dense, picture = timm_net.build(name, shape), timm_net.pictures(1, shape)
    macs, parameters = torch_pruning.utils.count_ops_and_params(dense, picture)
    facts: dict[str, Any] = {"violation": 0.0, "frozen": []}
    for ratio in _RATIOS:
        pruned = _pruned(copy.deepcopy(dense), picture, ratio)
        macs_left, parameters_left = torch_pruning.utils.count_ops_and_params(pruned, picture)
        facts |= {"parameters": parameters_left / parameters, "macs": macs_left / macs}
        if facts["parameters"] <= 1 - PARAMETERS and facts["macs"] <= 1 - MACS:
            return facts | {"ratio": ratio, "error": exported_error(pruned.eval(), picture)}
    return facts


def _pruned(model: torch.nn.Module, picture: torch.Tensor, ratio: float) -> torch.nn.Module:
    attention = {
        part.qkv: part
        for part in model.modules()
        if isinstance(getattr(part, "qkv", None), torch.nn.Linear) and isinstance(getattr(part, "num_heads", None), int)
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        picture,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=_classifiers(model.net),
        round_to=ROUND_TO,
        num_heads={qkv: part.num_heads for qkv, part in attention.items()},
    )
    pruner.step()
    for qkv, part in attention.items():
        part.num_heads = pruner.num_heads[qkv]
        part.attn_dim = qkv.out_features // 3
        part.head_dim = part.attn_dim // part.num_heads
    return model


def _classifiers(net: Any) -> list[torch.nn.Module]:
    """The layers that give the scores, by timm's own account."""
    found = net.get_classifier() if hasattr(net, "get_classifier") else None
    return [part for part in (found if isinstance(found, tuple) else (found,)) if isinstance(part, torch.nn.Module)]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [int(size) for size in sys.argv[2].split("x")])))
