"""SSP with ResNet-50 at 473 px, end to end, against the published forward in the same run.

The published forward encodes the supports again for every query; ours has them in a Task. Both
sides are made to select what bench/methods/selections.py says.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods.measuring import episode, measure
from bench.methods.selections import Forced, published_selections
from fastfss import SSP, create_encoder
from tests.methods.published_ssp import published_forward

SIZE = 473


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shots", [1, 5])
def test_query_with_cached_support(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, shots: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = SSP(create_encoder("deep_resnet50")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)

    monkeypatch.setattr("fastfss.methods.self_support.select", Forced())
    forced = published_selections()
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
