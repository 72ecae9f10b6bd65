"""IMR-HSNet with ResNet-50 at 400 px against the published forward, in the same run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.compare import compare
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
    forms = {
        "published": lambda: published_predict(*arguments)[0],
        "ours": lambda: fast.segment(typed, task, query_map=query_map).logits,
    }
    wanted = forms["published"]()
    error = (forms["ours"]().float() - wanted).norm() / wanted.norm()
    measured = compare(forms, seconds=20, min_rounds=3, caches="warm")
    benchmark.pedantic(forms["ours"], rounds=3)
    benchmark.extra_info.update(
        measured.as_dict(),
        ratio=round(measured.ratio("published", "ours"), 2),
        relative_error=float(error),
    )
    print(f"\nIMR-HSNet {stages} stages {dtype}: {measured}\n  relative error {error:.1e}")
    assert error < (1e-4 if dtype == torch.float32 else 5e-2)
