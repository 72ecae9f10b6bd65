"""HSNet's thirteen correlations (ResNet-50 at 400 px), against the published formulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.ceiling import against_floor, multiply_adds
from bench.compare import compare
from fastfss.ops import dense_correlation
from tests.published import hsnet_correlation

# channels, layers, grid of levels 4, 3 and 2
LEVELS = [(2048, 3, 13), (1024, 6, 25), (512, 4, 50)]
FLOPS = sum(2 * layers * channels * side**4 for channels, layers, side in LEVELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_hsnet_correlations(benchmark: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def maps() -> list[list[Tensor]]:
        return [
            [torch.randn(1, c, side, side, generator=generator) for _ in range(layers)]
            for c, layers, side in LEVELS
        ]

    queries, supports = maps(), maps()
    typed = [[[m.to(dtype) for m in level] for level in side] for side in (queries, supports)]

    def published() -> list[Tensor]:
        pairs = zip(queries, supports, strict=True)
        return [hsnet_correlation(q, s) for q, s in pairs]

    def ours() -> list[Tensor]:
        return [dense_correlation(q, s) for q, s in zip(*typed, strict=True)]

    for wanted, result in zip(published(), ours(), strict=True):
        difference = (wanted - result.float()).abs().max()
        assert difference < (1e-5 if dtype == torch.float32 else 2e-2)
    with torch.inference_mode():
        forms = {"published float32": published, "ours": ours}
        measured = compare(forms | {"multiply-adds": multiply_adds(dtype)}, seconds=15)
        benchmark.pedantic(ours, rounds=3)
    found = against_floor(measured, FLOPS, published="published float32")
    benchmark.extra_info.update(measured.as_dict(), **found)
    print(f"\nHSNet correlations {dtype}: {measured}\n  {found['gflops']} GFLOP/s")
