"""Attention as it is written out for the export: the same numbers as torch's, and nothing left of torch's operator."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from compiler.child.attention import PlainAttention, attend

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

BOOLEAN = torch.arange(42).reshape(6, 7) % 3 != 0


def parts(*, heads: int = 4, groups: int = 4, dims: int = 4) -> list[torch.Tensor]:
    """Query, key and value: [2, heads, 6 or 7, 8], or without the first axis."""
    random = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 6, 8), (2, groups, 7, 8), (2, groups, 7, 8)]
    return [torch.randn(shape[4 - dims :], generator=random) for shape in shapes]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.5},
        {"is_causal": True},
        {"attn_mask": BOOLEAN},
        {"attn_mask": torch.linspace(-2, 2, 42).reshape(6, 7)},
    ],
)
@pytest.mark.parametrize("dims", [3, 4])
def test_it_computes_what_torch_does(options, dims):
    query, key, value = parts(dims=dims)
    torch.testing.assert_close(
        attend(query, key, value, **options), scaled_dot_product_attention(query, key, value, **options)
    )


def test_grouped_heads_share_keys_and_values():
    query, key, value = parts(heads=8, groups=2)
    wanted = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, enable_gqa=True), wanted)


class Attentive(torch.nn.Module):
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return seen.transpose(-3, -2).reshape(6, -1)


@pytest.mark.parametrize("dims", [3, 4])
def test_an_exported_graph_holds_plain_operators_only(dims):
    tensors = tuple(part[:1] if dims == 4 else part for part in parts(dims=dims))
    with PlainAttention():
        program = torch.export.export(Attentive(), tensors)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("scaled_dot" in operator for operator in operators)
    assert "aten.softmax.int" in operators
    torch.testing.assert_close(program.module()(*tensors), Attentive()(*tensors))


@pytest.mark.parametrize("dims", [3, 4])
def test_so_does_one_that_was_exported_before(dims):
    tensors = tuple(part[:1] if dims == 4 else part for part in parts(dims=dims))
    before = torch.export.export(Attentive(), tensors).module()
    with PlainAttention():
        program = torch.export.export(before, tensors)
    assert not any("scaled_dot" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*tensors), before(*tensors))


def test_outside_of_it_torch_is_as_it_was():
    program = torch.export.export(Attentive(), tuple(part[:1] for part in parts()))
    assert any("scaled_dot" in str(node.target) for node in program.graph.nodes)
