from __future__ import annotations

import pytest
import torch

from fastfss.methods import self_support
from fastfss.methods.self_support import SelfSupportConfig, select
from tests.kernels.helpers import random


def by_pytorch(scores: torch.Tensor, config: SelfSupportConfig, monkeypatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(self_support, "confident", lambda *arguments: None)
        return select(scores, config)


@pytest.mark.parametrize("grid", [(3, 5), (13, 17), (1, 1)])
def test_it_selects_what_pytorch_does(device, dtype, grid, monkeypatch):
    scores = (3 * random(3, 2, *grid)).to(dtype).to(device)
    # No position of the last item is sure of the foreground, none of the first of the background.
    scores[2, 1] = scores[2, 0] - 1 - random(*grid, seed=1).abs().to(scores)
    scores[0, 0] = scores[0, 1] - 1 - random(*grid, seed=2).abs().to(scores)
    config = SelfSupportConfig(fallback=4)
    result, wanted = select(scores, config), by_pytorch(scores, config, monkeypatch)
    assert result.dtype == dtype and result.shape == wanted.shape
    # Among equals, which 16 bits have, any may be chosen: their number and their worst agree.
    probabilities = scores.float().softmax(dim=1).flip(1).to(dtype)
    for one, other, p in zip(
        *(t.flatten(0, 1) for t in (result, wanted, probabilities)), strict=True
    ):
        assert one.sum() == other.sum()
        assert p[one > 0].min() == p[other > 0].min()
    if dtype == torch.float32:
        assert torch.equal(result, wanted)


def test_without_a_number_it_is_the_largest(device):
    scores = torch.zeros(1, 2, 4, 4, device=device)
    scores[0, 0, 1, 2] = torch.nan
    chosen = select(scores, SelfSupportConfig(fallback=1))
    assert chosen.sum(dim=(2, 3)).tolist() == [[1.0, 1.0]]
    assert chosen[0, :, 1, 2].tolist() == [1.0, 1.0]
