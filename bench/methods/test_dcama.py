"""DCAMA with ResNet-50 at 384 px against the published forward, in the same run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.methods.measuring import episode, measure
from fastfss import DCAMA, create_encoder
from tests.methods.published_dcama import published_forward

SIZE = 384


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shots", [1, 5])
@torch.inference_mode()
def test_query_with_cached_support(benchmark: Any, shots: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = DCAMA(create_encoder("blocks_resnet50")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)
    task = fast.encode_support(images.to(dtype), masks)
    typed = query.to(dtype)
    supports, support_masks = list(images.unbind(1)), list(masks.unbind(1))
    measure(
        benchmark,
        f"DCAMA {shots}-shot {dtype}",
        lambda: published_forward(model, supports, support_masks, query),
        lambda: fast.segment(typed, task).logits,
        dtype=dtype,
    )
