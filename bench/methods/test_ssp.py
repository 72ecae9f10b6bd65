"""SSP with ResNet-50 at 473 px, end to end, against the published forward in the same run.

The published forward encodes the supports again for every query; ours has them in a Task. Random
weights would select few positions, so both sides are made to select the same: 20 %
foreground and 75 % background, which is assumed of a trained network, and 7 % of the positions
changing between the two passes, which is the median measured on everyday photographs with a frozen
ResNet-18. More change costs ours more and the published form nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods.measuring import episode, measure
from fastfss import SSP, create_encoder
from tests.methods.published_ssp import published_forward

SIZE = 473
GRID = 60


def selections() -> tuple[Tensor, Tensor]:
    """(1, 2, 60, 60) 0/1 of both passes: foreground, background."""
    order = torch.rand(GRID * GRID, generator=torch.Generator().manual_seed(0)).argsort()
    count = GRID * GRID
    passes = []
    for start in (0, round(0.035 * count)):  # what enters at one end leaves at the other
        chosen = torch.zeros(1, 2, count)
        chosen[0, 0, order[: count // 5]] = 1
        chosen[0, 1, order[count // 5 + start : count // 5 + start + 3 * count // 4]] = 1
        passes.append(chosen.view(1, 2, GRID, GRID))
    return passes[0], passes[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shots", [1, 5])
def test_query_with_cached_support(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, shots: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = SSP(create_encoder("deep_resnet50")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)

    first, second = selections()
    forced = [[(s[0, 0].flatten() > 0, s[0, 1].flatten() > 0)] for s in (first, second)]
    turns = {"next": 0}

    def select(scores: Tensor, _config: object) -> Tensor:
        turns["next"] ^= 1
        return (first if turns["next"] else second).to(scores.dtype)

    monkeypatch.setattr("fastfss.methods.self_support.select", select)
    supports, support_masks = list(images.unbind(1)), list(masks.unbind(1))

    def published() -> Tensor:
        return published_forward(
            model.encoder, "layer3", supports, support_masks, query, selected=forced
        )

    with torch.inference_mode():
        task = fast.encode_support(images.to(dtype), masks)
        typed = query.to(dtype)

        def ours() -> Tensor:
            return fast.segment(typed, task).logits

    measure(benchmark, f"SSP {shots}-shot {dtype}", published, ours, dtype=dtype)
