"""MLC's baseline with ResNet-50 at 473 px, end to end, against the published forward.

The published forward encodes the supports again for every query and enlarges their features; ours
has them in a Task. The support side is measured for itself as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.methods.measuring import episode, measure
from fastfss import MLC, create_encoder
from tests.methods.published_mlc import published_forward
from tests.published import panet_masked_average_pool

SIZE = 473


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shots", [1, 5])
def test_query_with_cached_support(benchmark: Any, shots: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MLC(create_encoder("deep_resnet50")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)
    supports, support_masks = list(images.unbind(1)), list(masks.unbind(1))
    with torch.inference_mode():
        task = fast.encode_support(images.to(dtype), masks)
        typed = query.to(dtype)

        def published() -> torch.Tensor:
            return published_forward(model.encoder, "layer3", supports, support_masks, query)

        def ours() -> torch.Tensor:
            return fast.segment(typed, task).logits

    measure(benchmark, f"MLC {shots}-shot {dtype}", published, ours, dtype=dtype)


def test_support_pooling(benchmark: Any) -> None:
    """What is left of the support side behind the encoder."""
    model = MLC(create_encoder("deep_resnet50")).eval()
    features = torch.randn(1, 1024, 60, 60, generator=torch.Generator().manual_seed(0))
    mask = episode(1, SIZE)[1][:, 0]

    def published() -> torch.Tensor:
        pooled = [panet_masked_average_pool(features, (mask == v).float()) for v in (1, 0)]
        return torch.stack(pooled, dim=1)

    def ours() -> torch.Tensor:
        return model.pool(features, mask)

    measure(benchmark, "MLC support pooling", published, ours, tolerance=1e-5, reads=[features])
