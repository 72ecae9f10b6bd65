"""dense_match at the sizes of its users, against the published formulations and the ceiling.

Measured on one core of a Zen 5 (AVX-512, bfloat16 products, no AMX) that other programs shared;
CPU time, medians in milliseconds, published and ours in the same dtype. The floor is the
operation's own FLOP at the rate of multiply-adds in registers, measured in the same rounds (270 and
540 GFLOP/s); torch's own products reached 100 and 460.

                                 float32                    bfloat16
                        published  ours   floor    published  ours   floor
    SSP local prototypes   574      146    120        178       80      60
    SSP update              47       18     14         18       10       7
    PFENet prior           598       46     36        185       24      18
    DCAMA attention       12.2      4.1    2.6        5.0      3.0     1.3
    SSP with gradient     1503      607
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ceiling import against_floor, multiply_adds
from bench.compare import compare, plain_read
from fastfss.ops import dense_match, dense_match_sums
from tests.methods.published_ssp import published_self_support
from tests.published import dcama_attention, pfenet_prior
from tests.tolerances import RELATIVE

DTYPES = [torch.float32, torch.bfloat16]


def report(
    benchmark: Any,
    name: str,
    dtype: torch.dtype,
    flop: float,
    features: Tensor,
    functions: dict[str, Callable[[], Tensor]],
) -> None:
    """Checks that all give the same, then times them in turns with the machine's ceilings."""
    results = {key: function().float() for key, function in functions.items()}
    wanted, ours = results["published"], results["ours"]
    assert (wanted - ours).abs().max() <= RELATIVE[dtype] * wanted.abs().max()
    with torch.inference_mode():
        ceilings = {"multiply-adds": multiply_adds(dtype), "plain read": plain_read(features)}
        timed: dict[str, Callable[[], Any]] = {**functions, **ceilings}
        measured = compare(timed, seconds=8, caches="warm")
        benchmark.pedantic(functions["ours"], rounds=3)
    found = against_floor(measured, flop)
    benchmark.extra_info.update(measured.as_dict(), **found)
    print(f"\n{name} {dtype}: {measured}\n  floor {found['floor_ms']:.1f} ms")


def features(channels: int, side: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, side, side, generator=generator).to(dtype)


def selection(side: int, share: float, seed: int = 1) -> Tensor:
    """(1, side, side) bool with the share of positions, scattered."""
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(side * side, dtype=torch.bool)
    chosen[order[: round(share * side * side)]] = True
    return chosen.view(1, side, side)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ssp_local_prototypes(benchmark: Any, dtype: torch.dtype) -> None:
    """One pass at 473 px, 20 % foreground and 75 % background; published, both are computed."""
    x = features(1024, 60, dtype)
    fg, bg = selection(60, 0.2), selection(60, 0.75, seed=2)
    forced = [(fg.flatten(), bg.flatten())]
    scores = x.new_zeros(1, 2, 60, 60)

    def plain() -> Tensor:
        flat, d = x.flatten(2), bg.flatten(1).to(dtype)
        units = F.normalize(flat, dim=1)
        e = (2.0 * (units.transpose(1, 2) @ units)).exp() * d.unsqueeze(1)
        return (e @ flat.transpose(1, 2) / e.sum(2, keepdim=True)).transpose(1, 2).view_as(x)

    def ours() -> Tensor:
        numerator, denominator = dense_match_sums(x, x, x, bg, scale=2.0)
        return numerator / denominator.unsqueeze(1)

    n, m = 3600, 2700
    flop = 2 * 1024 * (m * m / 2 + (n - m) * m) + 2 * 1024 * n * m
    functions = {
        "published": lambda: published_self_support(x, scores, forced)[2],
        "plain": plain,
        "ours": ours,
    }
    report(benchmark, "SSP local prototypes", dtype, flop, x, functions)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ssp_update_of_a_few_positions(benchmark: Any, dtype: torch.dtype) -> None:
    """The second pass: 7 % of the positions entered or left the background."""
    x, changed = features(1024, 60, dtype), selection(60, 0.07)
    weights = torch.where(changed, 1 - 2 * selection(60, 0.5, seed=2).float(), 0.0)

    def gathered() -> Tensor:
        flat, chosen = x.flatten(2), changed.flatten()
        units = F.normalize(flat, dim=1)
        e = (2.0 * (units.transpose(1, 2) @ units[:, :, chosen])).exp() * weights[changed].to(dtype)
        return (e @ flat[:, :, chosen].transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    flop = 4 * 1024 * 3600 * float(changed.sum())
    functions = {
        "published": gathered,
        "ours": lambda: dense_match_sums(x, x, x, weights, scale=2.0)[0],
    }
    report(benchmark, "SSP update", dtype, flop, x, functions)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pfenet_prior(benchmark: Any, dtype: torch.dtype) -> None:
    """2048 channels at 60 x 60, the object on 18 % of the support."""
    q, s = features(2048, 60, dtype), features(2048, 60, dtype, seed=1)
    chosen = selection(60, 0.18)
    flop = 2 * 2048 * 3600 * float(chosen.sum())
    functions = {
        "published": lambda: pfenet_prior(q, s, chosen),
        "ours": lambda: dense_match(q, s, mask=chosen, reduce="max").clamp_min(0),
    }
    report(benchmark, "PFENet prior", dtype, flop, q, functions)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dcama_attention(benchmark: Any, dtype: torch.dtype) -> None:
    """One head's scaled dot products at 48 x 48; the value is the support mask."""
    q, s = features(64, 48, dtype), features(64, 48, dtype, seed=1)
    value = features(1, 48, dtype, seed=2).sigmoid()
    flop = (2 * 64 + 2) * 2304.0 * 2304
    functions = {
        "published": lambda: dcama_attention(q, s, value),
        "ours": lambda: dense_match(q, s, value, scale=1 / 8, normalize=False),
    }
    report(benchmark, "DCAMA attention", dtype, flop, q, functions)


def test_gradient_of_ssp_local_prototypes(benchmark: Any) -> None:
    """Forward and backward of one pass."""
    bg = selection(60, 0.75, seed=2)
    forced = [(selection(60, 0.2).flatten(), bg.flatten())]
    direction = features(1024, 60, torch.float32, seed=3)

    def published() -> Tensor:
        x = features(1024, 60, torch.float32).requires_grad_()
        local = published_self_support(x, torch.zeros(1, 2, 60, 60), forced)[2]
        return torch.autograd.grad(local, x, direction)[0]

    def ours() -> Tensor:
        x = features(1024, 60, torch.float32).requires_grad_()
        numerator, denominator = dense_match_sums(x, x, x, bg, scale=2.0)
        return torch.autograd.grad(numerator / denominator.unsqueeze(1), x, direction)[0]

    wanted = published()
    assert (wanted - ours()).abs().max() <= RELATIVE[torch.float32] * wanted.abs().max()
    measured = compare({"published": published, "ours": ours}, seconds=8, caches="warm")
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info.update(
        measured.as_dict(), ratio=round(measured.ratio("published", "ours"), 2)
    )
    print(f"\nSSP local prototypes with gradient: {measured}")
