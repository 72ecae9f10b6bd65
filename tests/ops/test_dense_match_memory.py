"""What the native dense_match does with memory, and the AMX path on emulated tiles."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from bench.memory import peak_above
from fastfss.ops import _native_call, dense_match_sums
from fastfss.ops.dense_match import _call
from tests.ops.test_dense_match import SIZES, Size, exact, maps, native, weights
from tests.tolerances import assert_close

pytestmark = native


def emulated(
    query: Tensor, key: Tensor, value: Tensor | None, mask: Tensor, scale: float, *, sums: bool
) -> tuple[Tensor, Tensor]:
    """On emulated tiles: sums, or softmax (no value: the maximum) and NaN."""
    shape = (len(query), *query.shape[2:])
    if value is not None:
        shape = (shape[0], value.shape[1], *shape[1:])
    dtype = torch.float32 if sums else query.dtype
    out = torch.full(shape, float("nan"), dtype=dtype)
    denominator = torch.full((len(query), *query.shape[2:]), float("nan"))
    flat = out.flatten(2 if value is not None else 1)
    reduce = 2 if sums else 1 if value is None else 0
    normalize = reduce != 1
    totals = denominator.flatten(1) if sums else None
    m = mask.flatten(1).float()
    _call(query, key, value, m, flat, totals, scale, normalize, reduce, 1e-8, True)
    return out, denominator


# The tiles are 16 x 16, their blocks 32 x 32, the panels 64, a chunk 256 channels.
TILE_SIZES = [*SIZES, Size(300, (3, 47), (66,), 33)]


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("size", TILE_SIZES, ids=str)
def test_emulated_tiles_equal_float64(size: Size, last: bool) -> None:
    q = maps(size.channels, size.query, torch.bfloat16, last=last)
    k = maps(size.channels, size.key, torch.bfloat16, seed=1, last=last)
    v = maps(size.values, size.key, torch.bfloat16, seed=2, last=last)
    m = weights(size.key)
    for scale in (5.0, 80.0):
        assert_close(emulated(q, k, v, m, scale, sums=False)[0], exact(q, k, v, m, scale=scale))
    for share in (0.2, 1.0):
        w = weights(size.query, share=share)
        ours = emulated(q, q, q, w, 2.0, sums=True)
        wide = q.double()
        wanted = dense_match_sums(wide, wide, wide, w, scale=2.0)
        for mine, right in zip(ours, wanted, strict=True):
            assert_close(mine, right, dtype=torch.bfloat16)


@pytest.mark.parametrize("size", TILE_SIZES, ids=str)
def test_emulated_tiles_are_exact_on_small_integers(size: Size) -> None:
    """Integers have no rounding: every element must come from its place, bit for bit."""
    q, k, v = (
        maps(channels, grid, seed=seed).mul(2).round().clamp(-6, 6).bfloat16()
        for channels, grid, seed in (
            (size.channels, size.query, 0),
            (size.channels, size.key, 1),
            (size.values, size.key, 2),
        )
    )
    m = (weights(size.key) > 0).float()
    logits = q.double().flatten(2).transpose(1, 2) @ k.double().flatten(2)
    best = logits.masked_fill(m.flatten(1).unsqueeze(1) == 0, -torch.inf).amax(dim=2)
    ours = emulated(q, k, None, m, 1.0, sums=False)[0]
    assert torch.equal(ours.flatten(1), best.bfloat16())
    # Scale 0 makes every exponential 1: the sums are sums of integers.
    w = m * (maps(1, size.key, seed=5)[:, 0].mul(2).round().clamp(-3, 3))
    numerator, denominator = emulated(q, k, v, w, 0.0, sums=True)
    wanted = (v.double().flatten(2) * w.double().flatten(1).unsqueeze(1)).sum(dim=2)
    assert numerator.double().flatten(2).eq(wanted.unsqueeze(2)).all()
    assert denominator.double().flatten(1).eq(w.double().flatten(1).sum(1, keepdim=True)).all()


def test_working_memory_is_kept_up_to_its_limit_and_released() -> None:
    core = _native_call.module
    assert core is not None
    core.release_workspace()
    x, w = maps(256, (50, 50), batch=1), torch.ones(1, 50, 50)
    first = dense_match_sums(x, x, x, w)
    again = dense_match_sums(x, x, x, w)  # in the memory of the first call, unclean
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert 2 * x.numel() * 4 <= core.release_workspace() <= 64 << 20
    assert core.release_workspace() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_pairs_of_positions() -> None:
    """16,000 positions: their float32 matrix would be 1 GB; the call may add 30 MB."""
    setup = """
    from fastfss.ops import dense_match, dense_match_sums
    small, x = torch.randn(1, 4, 100), torch.randn(1, 4, 16000)
    mask = torch.ones(1, 16000)
    dense_match(small, small)
    dense_match_sums(small, small, small, mask[:, :100])
    """
    call = """
    dense_match(x, x + 1, mask=mask)
    dense_match(x, x + 1, mask=mask, scale=100.0)
    dense_match(x, x, reduce="max")
    dense_match_sums(x, x, x, mask)
    """
    assert peak_above(setup, call) < 30
