"""Pruning of nets that cut, join, reshape and attend: what is left computes what it should."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prunable import BLOCKS, CONVOLUTIONAL, Detector, build, picture
from torch import nn

from compiler.child.export import to_onnx
from compiler.child.prune import Pruner, PruningRecord, apply, load, prune, tensors
from compiler.child.pruning.analysis import Analysis
from compiler.child.pruning.graph import capture
from compiler.child.pruning.labels import FROZEN, Labels
from compiler.child.pruning.law import violation
from compiler.child.pruning.rules import RULES
from compiler.child.pruning.units import find_blocks, left
from compiler.child.userload import UserError

CLOSE = 1e-4


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def deaf(net: nn.Module, record: PruningRecord) -> nn.Module:
    """The dense net whose weights do not listen to the channels that went: exact where nothing normalizes over them."""
    net = copy.deepcopy(net)
    weights = dict(net.named_parameters())
    modules = dict(net.named_modules())
    for name, axes in record.indices().items():
        module = modules[name.rpartition(".")[0]]
        inputs = 0 if isinstance(module, nn.ConvTranspose2d) else 1
        if inputs in axes and name in weights and weights[name].dim() > 1:
            mask = torch.zeros(weights[name].shape[inputs])
            mask[axes[inputs]] = 1
            weights[name].data *= mask.view([-1 if a == inputs else 1 for a in range(weights[name].dim())])
    return net


TOGETHER = [
    ("c2f", "csp", "concat-of-3"),
    ("shuffle", "grouped", "squeeze", "focus"),
    ("attention", "rotary", "blocked-attention"),
    ("fused-attention", "window-attention", "gated-group-norm", "weight-standardized"),
]
ALONE = [pytest.param((name,), marks=pytest.mark.slow) for name in BLOCKS]


@pytest.mark.parametrize("names", [*TOGETHER, *ALONE], ids="+".join)
def test_what_is_left_is_smaller_keeps_the_law_and_comes_back_from_its_record(names):
    net, example = build(*names), picture()
    pruner = Pruner(net, example)
    assert pruner.frozen == []
    assert pruner.violation(net, picture(1)) < CLOSE
    pruned, record = pruner.carry_out(pruner.choose(0.4, 4))
    assert record.after.parameters < 0.65 * record.before.parameters
    assert record.after.macs < 0.75 * record.before.macs
    assert sum(v.numel() for n, v in pruned.named_parameters()) == record.after.parameters
    with torch.no_grad():
        answer = pruned(picture(1))
        if set(names) <= set(CONVOLUTIONAL):
            assert apart(answer, deaf(net, record)(picture(1))) < CLOSE
    stored = msgspec.json.decode(msgspec.json.encode(record), type=PruningRecord)
    again = apply(build(*names, seed=7), example, stored)
    load(again, tensors(pruned))
    with torch.no_grad():
        assert torch.equal(again(picture(1)), answer)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    ratio=st.floats(0.1, 0.8),
    width=st.sampled_from([16, 32, 40]),
    seed=st.integers(0, 99),
)
def test_random_nets_keep_the_law_and_run(names, ratio, width, seed):
    net = build(*names, seed=seed, width=width)
    pruner = Pruner(net, picture())
    assert pruner.violation(net, picture(1)) < 10 * CLOSE
    choice = pruner.choose(ratio, 8)
    pruned, record = pruner.carry_out(choice)
    with torch.no_grad():
        answer = pruned(picture(1))
        assert answer.shape == (1, 6)
        if set(names) <= set(CONVOLUTIONAL):
            assert apart(answer, deaf(net, record)(picture(1))) < 10 * CLOSE


@pytest.mark.slow
def test_onnx_runtime_answers_as_the_pruned_net():
    names = ("shuffle", "window-attention", "rotary", "fused-attention", "blocked-attention")
    pruned, _ = prune(build(*names), picture(), 0.4)
    program = to_onnx(pruned, picture().shape, "image", ["scores"], None)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {"image": picture(1).numpy()})
    with torch.no_grad():
        assert apart(torch.from_numpy(found), pruned(picture(1))) < CLOSE


def test_an_overlooked_coupling_breaks_the_law():
    net = build("c2f")
    module = capture(net, picture())

    def untied(analysis: Analysis, _node, args):
        return analysis.dims(args["self"])

    wrong = Analysis(module, {**RULES, "add": untied})
    assert violation(net, wrong, find_blocks(wrong), picture(1)) > 0.01


def test_an_operator_without_a_rule_freezes_and_is_named():
    net, rules = build("c2f"), {k: v for k, v in RULES.items() if k != "cat"}
    found = Analysis(capture(net, picture()), rules)
    assert found.unknown == {"cat"}
    assert violation(net, found, find_blocks(found), picture(1)) < CLOSE


def test_channels_are_kept_in_multiples_and_outputs_all():
    pruned, record = prune(build("c2f", "attention", width=64), picture(), 0.3, round_to=8)
    weights = tensors(pruned)
    assert weights["head.weight"].shape[0] == 6
    counts = {v.shape[0] for n, v in weights.items() if v.dim() > 1 and n != "head.weight"}
    assert all(count % 8 == 0 for count in counts), counts
    assert record.kept["head.weight"][0] is None


def test_a_detector_keeps_what_it_says_and_loses_the_rest():
    torch.manual_seed(0)
    net = Detector().eval()
    pruner = Pruner(net, picture())
    assert pruner.violation(net, picture(1)) < CLOSE
    pruned, record = pruner.carry_out(pruner.choose(0.5, 8))
    assert record.after.parameters < 0.35 * record.before.parameters
    assert [record.kept[f"heads.{n}.weight"][0] for n in (0, 1)] == [None, None]
    with torch.no_grad():
        pairs = zip(pruned(picture(1)), deaf(net, record)(picture(1)), strict=True)
        assert all(apart(found, wanted) < CLOSE for found, wanted in pairs)


def test_what_is_to_be_kept_is_kept():
    _, record = prune(build("csp"), picture(), 0.5, keep=["mix.0"])
    assert record.kept["mix.0.weight"][0] is None
    assert record.kept["mix.0.weight"][1] is not None


def test_the_same_net_gives_the_same_record_and_stays_as_it_was():
    net = build("squeeze", "attention")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _, one = prune(net, picture(), 0.3)
    _, other = prune(net, picture(), 0.3)
    assert msgspec.json.encode(one) == msgspec.json.encode(other)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_record_of_another_net_is_refused():
    pruned, record = prune(build("csp"), picture(), 0.4)
    with pytest.raises(UserError, match="does not fit the model"):
        apply(build("csp", width=40), picture(), record)
    whole = apply(build("csp"), picture(), record)
    weights = tensors(pruned)
    weights["head.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"head\.bias"):
        load(whole, weights)


@pytest.mark.slow
def test_a_batch_of_any_size_goes_through_if_it_was_left_open():
    net = build("window-attention", "c2f")
    _, record = prune(net, picture(), 0.4)
    fixed = apply(net, picture(), record)
    is_open = apply(net, torch.cat([picture()] * 2), record, dynamic_batch=True)
    pictures = torch.cat([picture(n) for n in range(3)])
    with torch.no_grad():
        assert apart(is_open(pictures)[:1], fixed(pictures[:1])) < CLOSE


def test_attention_keeps_the_scale_that_it_was_trained_with():
    pruned, _ = prune(build("fused-attention"), picture(), 0.5, round_to=4)
    (call,) = [n for n in pruned.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert call.kwargs["scale"] == 0.25  # sixteen channels a head, before


def test_how_many_stay():
    assert [left(64, 0.3, 8), left(20, 0.3, 8), left(3, 0.3, 1), left(64, 0.0, 8), left(12, 0.9, 4)] == [
        48,
        16,
        2,
        64,
        4,
    ]


def test_every_block_is_tried():
    assert {name for names in TOGETHER for name in names} == set(BLOCKS)


def test_a_reshape_that_cuts_a_channel_row_gives_each_axis_units_of_its_own():
    labels = Labels()
    heads, width = labels.split(labels.fresh(12), [3, 4])
    assert heads is not None
    assert width is not None
    flat = labels.merge([heads, width], [3, 4])
    assert flat is not None
    assert [len(labels.units(p)) for p in flat.tolist()] == [2] * 12


def test_positions_that_cannot_form_a_grid_are_tied_until_they_do():
    labels = Labels()
    (a, b, c) = labels.fresh(3).tolist()
    _, columns = labels.split(np.array([a, b, c, b, a, c]), [2, 3])
    assert columns is not None
    assert labels.units(a) == labels.units(b) != labels.units(c)
    labels.unify(c, FROZEN)
    assert labels.units(int(columns[2])) == ()
