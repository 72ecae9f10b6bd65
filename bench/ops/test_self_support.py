"""SSP's refined head at 473 px (N = 3600, C = 1024), against the published one.

Random features select what they like, so both sides are made to select what
bench/methods/selections.py says.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.ceiling import against_floor, multiply_adds
from bench.compare import compare
from bench.flop import flop_of
from bench.memory import peak_above
from bench.methods.selections import GRID, Forced, published_selections
from fastfss.methods.self_support import SelfSupportConfig, self_support
from tests.methods.published_ssp import published_head

CHANNELS = 1024


def episode(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, CHANNELS, GRID, GRID), (1, CHANNELS), (1, CHANNELS))
    x, fg, bg = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return x, fg, bg


def published(x: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
    return published_head(x, fg, bg, selected=published_selections())


def ours(x: Tensor, fg: Tensor, bg: Tensor) -> Tensor:
    return self_support(x, fg, bg, SelfSupportConfig(), refine=True).final


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_refined_head(benchmark: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("fastfss.methods.self_support.select", Forced())
    wide, typed = episode(torch.float32), episode(dtype)
    last = typed[0].contiguous(memory_format=torch.channels_last), *typed[1:]
    with torch.inference_mode():
        difference = (published(*wide) - ours(*typed).float()).abs().max()
        measured = compare(
            {
                "published float32": lambda: published(*wide),
                f"published {dtype}": lambda: published(*typed),
                "ours": lambda: ours(*typed),
                "ours channels-last": lambda: ours(*last),
                "multiply-adds": multiply_adds(dtype),
            },
            seconds=20,
            caches="warm",
        )
        benchmark.pedantic(ours, args=typed, rounds=3)
        flop = flop_of(lambda: ours(*typed))
    benchmark.extra_info.update(
        measured.as_dict(),
        **against_floor(measured, flop, published="published float32"),
        ratio_same_dtype=round(measured.ratio(f"published {dtype}", "ours"), 2),
        largest_difference=float(difference),
    )
    print(f"\nSSP refined head {dtype}: {measured}\n  largest difference {difference:.1e}")
    assert difference < (1e-4 if dtype == torch.float32 else 0.1)


def peak_above_start(function: str, dtype: str) -> float:
    """MiB that one call adds to the peak of a process of its own."""
    setup = f"""
    import fastfss.methods.self_support as head
    from bench.ops import test_self_support as bench
    head.select = bench.Forced()
    x, fg, bg = bench.episode(torch.{dtype})
    small = torch.randn(256, 256, dtype=x.dtype) @ torch.randn(256, 256, dtype=x.dtype)
    """
    return peak_above(setup, f"bench.{function}(x, fg, bg)")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory(benchmark: Any, dtype: str) -> None:
    of_published = peak_above_start("published", dtype)
    mine = benchmark.pedantic(peak_above_start, args=("ours", dtype), rounds=1)
    benchmark.extra_info.update(published_mib=round(of_published), ours_mib=round(mine))
    print(f"\nSSP refined head {dtype}: published {of_published:.0f} MiB, ours {mine:.0f} MiB")
