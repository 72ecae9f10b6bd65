"""Cosine scores of 1024 x 60 x 60 maps with 2 or 10 prototypes, as published and ours.

`ratio` is published / ours; `of_read` is ours / one plain read of everything that has to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.compare import Caches, compare, plain_read
from fastfss.ops import prototype_match
from tests.published import cosine_scores
from tests.tolerances import assert_close


def inputs(
    batch: int, count: int, dtype: torch.dtype, layout: str, per_position: bool
) -> tuple[Tensor, Tensor]:
    """Features (batch, 1024, 60, 60) and prototypes, in one memory layout."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 1024, 60, 60, generator=generator).to(dtype)
    grid = (60, 60) if per_position else ()
    prototypes = torch.randn(batch, count, 1024, *grid, generator=generator).to(dtype)
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
        if per_position:
            prototypes = prototypes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return features, prototypes


def reads(*tensors: Tensor) -> Callable[[], Any]:
    each = [plain_read(tensor) for tensor in tensors]
    return lambda: [read() for read in each]


@pytest.mark.parametrize(
    ("batch", "count", "dtype", "layout", "per_position", "caches"),
    [
        (1, 2, torch.float32, "first", False, "cold"),
        (1, 2, torch.float32, "first", False, "warm"),
        (1, 2, torch.float32, "last", False, "cold"),
        (1, 2, torch.bfloat16, "first", False, "cold"),
        (1, 2, torch.bfloat16, "last", False, "cold"),
        (1, 10, torch.float32, "first", False, "cold"),
        (1, 10, torch.float32, "last", False, "cold"),
        (16, 2, torch.float32, "first", False, "cold"),
        (16, 10, torch.float32, "first", False, "cold"),
        (1, 1, torch.float32, "first", True, "cold"),
        (1, 1, torch.float32, "last", True, "cold"),
        (1, 2, torch.float32, "first", True, "cold"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_scores(
    benchmark: Any,
    batch: int,
    count: int,
    dtype: torch.dtype,
    layout: str,
    per_position: bool,
    caches: Caches,
) -> None:
    features, prototypes = inputs(batch, count, dtype, layout, per_position)

    def theirs() -> Tensor:
        return cosine_scores(features, list(prototypes.unbind(1)))

    def ours() -> Tensor:
        return prototype_match(features, prototypes, scale=10.0)

    assert_close(ours(), theirs(), dtype=dtype)
    floor = reads(features, prototypes) if per_position else reads(features)
    with torch.inference_mode():
        functions = {"published": theirs, "ours": ours, "plain read": floor}
        measured = compare(functions, caches=caches, seconds=6)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(
        measured.as_dict(),
        ratio=round(measured.ratio("published", "ours"), 2),
        of_read=round(measured.ratio("ours", "plain read"), 2),
    )
    print(f"\n{caches}: {measured}\n  ours / plain read = {benchmark.extra_info['of_read']}")


@pytest.mark.parametrize("per_position", [False, True], ids=["vectors", "per_position"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_with_gradients(benchmark: Any, layout: str, per_position: bool) -> None:
    features, prototypes = inputs(2, 2, torch.float32, layout, per_position)
    leaves = (features.requires_grad_(), prototypes.requires_grad_())
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(2, 2, 60, 60, generator=generator)

    def theirs() -> tuple[Tensor, ...]:
        scores = cosine_scores(features, list(prototypes.unbind(1)))
        return torch.autograd.grad(scores, leaves, direction)

    def ours() -> tuple[Tensor, ...]:
        scores = prototype_match(features, prototypes, scale=10.0)
        return torch.autograd.grad(scores, leaves, direction)

    for mine, wanted in zip(ours(), theirs(), strict=True):
        assert_close(mine, wanted)
    functions = {"published": theirs, "ours": ours, "plain read": plain_read(features.detach())}
    measured = compare(functions, seconds=6)
    benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
    ratio = round(measured.ratio("published", "ours"), 2)
    benchmark.extra_info.update(measured.as_dict(), ratio=ratio)
    print(f"\nforward and backward: {measured}")
