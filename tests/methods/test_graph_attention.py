from __future__ import annotations

import torch
from torch import Tensor

from fastfss.methods.graph_attention import GraphAttention, as_rows, uniform_attention
from tests.tolerances import assert_close


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uniform_attention_has_the_gradient_of_an_overwritten_softmax() -> None:
    query, key, value = (drawn(2, n, 5, seed=n).requires_grad_() for n in (6, 7, 7))
    weight = torch.tensor([[1.0, 1, 0, 1, 1, 0, 3], [1, 1, 1, 1, 1, 1, 0]], dtype=torch.float64)
    share, grad = 0.25, drawn(2, 6, 5, seed=1)

    def published(item: int) -> Tensor:
        """Each position as often as its weight says."""
        repeated = torch.arange(7).repeat_interleave(weight[item].long())
        attention = (query[item] @ key[item][repeated].T).softmax(1)
        attention.data.fill_(share)
        return attention @ value[item][repeated]

    wanted = torch.stack([published(0), published(1)])
    found = uniform_attention(query, key, value, weight, share)
    assert_close(found, wanted)
    inputs = (query, key, value)
    gradients = zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(wanted, inputs, grad),
        strict=True,
    )
    for ours, theirs in gradients:
        assert_close(ours, theirs)
        assert ours.abs().max() > 1e-3


@torch.no_grad()
def test_bare_keys_give_the_same_attention() -> None:
    torch.manual_seed(0)
    unit = GraphAttention(8).double()
    features, rows = drawn(2, 8, 3, 5), drawn(2, 11, 8)
    wanted = (unit.queries(features) @ unit.keys(rows).transpose(1, 2)).softmax(2)
    assert_close((unit.queries_for_bare_keys(features) @ rows.transpose(1, 2)).softmax(2), wanted)
    assert wanted.std() > 1e-2


@torch.no_grad()
def test_the_output_is_phi_of_both_maps_for_every_way() -> None:
    torch.manual_seed(0)
    unit = GraphAttention(8).double()
    attended, own = drawn(2, 3, 8, 4, 5), drawn(2, 8, 4, 5, seed=1)
    found = unit(attended, own).unflatten(0, (2, 3))
    for way in range(3):
        assert_close(found[:, way], unit.Phi(torch.cat([attended[:, way], own], dim=1)))


def test_rows_are_positions_row_by_row() -> None:
    maps = torch.arange(12).view(1, 2, 2, 3)
    assert as_rows(maps)[0].tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
