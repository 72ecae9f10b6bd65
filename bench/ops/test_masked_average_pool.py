"""Foreground and background prototypes of 60 x 60 maps under 473 x 473 masks, published and ours.

`ratio` is published / ours; `of_read` is ours / one plain read of the features. With the mask
shrunk, the published form is itself only `ratio * of_read` plain reads long at batch 1: no code can
be faster than it by more.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from bench.compare import Caches, compare, plain_read
from fastfss.ops import masked_average_pool
from tests.published import panet_masked_average_pool, ssp_masked_average_pool
from tests.tolerances import assert_close

SSP = (1024, "mask")
ENLARGED = (512, "features")


@pytest.mark.parametrize(
    ("batch", "kind", "dtype", "layout", "caches"),
    [
        (1, SSP, torch.float32, "first", "cold"),
        (1, SSP, torch.float32, "first", "warm"),
        (1, SSP, torch.float32, "last", "cold"),
        (1, SSP, torch.bfloat16, "first", "cold"),
        (1, SSP, torch.bfloat16, "last", "cold"),
        (16, SSP, torch.float32, "first", "cold"),
        (16, SSP, torch.float32, "last", "cold"),
        (16, SSP, torch.bfloat16, "first", "cold"),
        (1, ENLARGED, torch.float32, "first", "cold"),
        (1, ENLARGED, torch.float32, "last", "cold"),
    ],
    ids=lambda value: str(value).removeprefix("torch.").replace("'", ""),
)
def test_foreground_and_background(
    benchmark: Any,
    batch: int,
    kind: tuple[int, Literal["mask", "features"]],
    dtype: torch.dtype,
    layout: str,
    caches: Caches,
) -> None:
    channels, resize = kind
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, channels, 60, 60, generator=generator).to(dtype)
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
    foreground = torch.zeros(batch, 473, 473)
    foreground[:, 100:310, 120:345] = 1  # a fifth of the image
    masks = torch.stack([foreground, 1 - foreground], dim=1)
    published = ssp_masked_average_pool if resize == "mask" else panet_masked_average_pool

    def theirs() -> torch.Tensor:
        return torch.stack([published(features, masks[:, i].to(dtype)) for i in range(2)], dim=1)

    def ours() -> torch.Tensor:
        return masked_average_pool(features, masks, resize=resize)

    assert_close(ours(), theirs(), dtype=dtype)
    functions = {"published": theirs, "ours": ours, "plain read": plain_read(features)}
    with torch.inference_mode():
        measured = compare(functions, caches=caches, seconds=6)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(
        measured.as_dict(),
        ratio=round(measured.ratio("published", "ours"), 2),
        of_read=round(measured.ratio("ours", "plain read"), 2),
    )
    print(f"\n{caches}: {measured}\n  ours / plain read = {benchmark.extra_info['of_read']}")


@pytest.mark.parametrize("layout", ["first", "last"])
def test_with_gradients(benchmark: Any, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 1024, 60, 60, generator=generator)
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    masks = torch.rand(4, 2, 473, 473, generator=generator).round()
    direction = torch.randn(4, 2, 1024, generator=generator)

    def theirs() -> torch.Tensor:
        pooled = [ssp_masked_average_pool(features, masks[:, i]) for i in range(2)]
        return torch.autograd.grad(torch.stack(pooled, dim=1), features, direction)[0]

    def ours() -> torch.Tensor:
        return torch.autograd.grad(masked_average_pool(features, masks), features, direction)[0]

    assert_close(ours(), theirs())
    functions = {"published": theirs, "ours": ours, "plain read": plain_read(features.detach())}
    measured = compare(functions, seconds=6)
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    ratio = round(measured.ratio("published", "ours"), 2)
    benchmark.extra_info.update(measured.as_dict(), ratio=ratio)
    print(f"\nforward and backward: {measured}")
