"""IMR-HSNet with ResNet-50 at 400 px against the published forward, in the same run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.methods.measuring import measure
from fastfss import IMRHSNet, create_encoder
from tests.methods.published_imr_hsnet import published_predict

SIZE, GRID = 400, 50


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stages", [2, 3])
def test_query_with_cached_support(benchmark: Any, stages: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    whole = IMRHSNet(create_encoder("blocks_resnet50"), stages=stages).eval()
    fast = whole.for_inference(dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 1, 3, SIZE, SIZE, generator=generator)
    query = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    maps, query_map = torch.rand(2, 1, 1, GRID, GRID, generator=generator).unbind(0)
    task = fast.encode_support(images.to(dtype), maps)
    typed = query.to(dtype)
    arguments = whole, [images[:, 0]], [maps[:, 0]], query, query_map[:, 0]
    measure(
        benchmark,
        f"IMR-HSNet {stages} stages {dtype}",
        lambda: published_predict(*arguments)[0],
        lambda: fast.segment(typed, task, query_map=query_map).logits,
        dtype=dtype,
    )
