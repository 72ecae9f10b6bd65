"""HSNet's learner at 400 px (ResNet-50): its center-pivot convolutions, norms and ReLUs.

Correlations are given, to each form in the memory that it reads as it is. Rates count the
multiply-adds inside of the grids alone; the floor is those at the rate of bench/ceiling.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.ceiling import against_floor, multiply_adds
from bench.compare import compare
from bench.flop import taps
from fastfss.methods.hypercorrelation import CenterPivotConv4d, HypercorrelationLearner
from tests.methods.published_hsnet import published_block, published_learner

LAYERS = {50: 4, 25: 6, 13: 3}  # correlations by grid
BLOCKS = {
    "encoder_layer2": (4, 50, 50),
    "encoder_layer3": (6, 25, 25),
    "encoder_layer4": (3, 13, 13),
    "encoder_layer4to3": (128, 25, 2),
    "encoder_layer3to2": (128, 50, 2),
}
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


def learner() -> HypercorrelationLearner:
    torch.manual_seed(0)
    return HypercorrelationLearner((4, 6, 3), "square").eval()


def correlations(inputs: int, query: int, support: int) -> Tensor:
    """Channels last."""
    generator = torch.Generator().manual_seed(0)
    last = torch.rand(1, query, query, support, support, inputs, generator=generator)
    return last.permute(0, 5, 1, 2, 3, 4)


def gflop(block: str) -> float:
    """Of the convolutions of a block."""
    _, query, support = BLOCKS[block]
    total = 0
    for conv in learner().get_submodule(block).children():
        if not isinstance(conv, CenterPivotConv4d):
            continue
        outputs, inputs, kernel, _ = conv.conv1.weight.shape
        left = -(-support // conv.stride)
        total += 2 * inputs * outputs * (query * taps(support, kernel, conv.stride)) ** 2
        total += 2 * inputs * outputs * (left * taps(query, kernel, 1)) ** 2
        support = left
    return total / 1e9


def record(
    benchmark: Any, title: str, forms: dict[str, Any], dtype: torch.dtype, work: float
) -> None:
    wanted = forms["published"]()
    error = float((forms["ours"]().float() - wanted).norm() / wanted.norm())
    forms = forms | {"multiply-adds": multiply_adds(dtype)}
    measured = compare(forms, seconds=10, caches="warm")
    benchmark.pedantic(forms["ours"], rounds=3)
    found = against_floor(measured, work * 1e9)
    benchmark.extra_info.update(measured.as_dict(), **found, relative_error=float(f"{error:.1e}"))
    print(
        f"\n{title} {dtype}: {measured}\n  {found['gflops']} GFLOP/s, "
        f"floor {found['floor_ms']:.1f} ms, relative error {error:.1e}"
    )
    # Fourteen blocks and a decoder after each other round to bfloat16 in the whole learner.
    assert error < (1e-5 if dtype == torch.float32 else 5e-2)


@torch.inference_mode()
@dtypes
def test_whole_learner(benchmark: Any, dtype: torch.dtype) -> None:
    whole = learner()
    fast = copy.deepcopy(whole).to(dtype=dtype, memory_format=torch.channels_last)
    levels = [correlations(layers, grid, grid) for grid, layers in LAYERS.items()]
    typed, plain = [one.to(dtype) for one in levels], [one.contiguous() for one in levels]
    forms = {
        "published": lambda: published_learner(whole, plain),
        "ours": lambda: fast(*typed),
    }
    decoder = 2 * 9 * (50**2 * (128 * 128 + 128 * 64) + 100**2 * (64 * 64 + 64 * 2)) / 1e9
    record(benchmark, "learner", forms, dtype, sum(map(gflop, BLOCKS)) + decoder)


@torch.inference_mode()
@dtypes
@pytest.mark.parametrize("block", BLOCKS)
def test_block(benchmark: Any, block: str, dtype: torch.dtype) -> None:
    whole = learner().get_submodule(block)
    fast = copy.deepcopy(whole).to(dtype)
    x = correlations(*BLOCKS[block])
    typed, plain = x.to(dtype), x.contiguous()
    forms = {"published": lambda: published_block(plain, whole), "ours": lambda: fast(typed)}
    record(benchmark, block, forms, dtype, gflop(block))
