from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import dense_correlation
from fastfss.ops.dense_correlation import dense_correlation_reference
from tests.kernels.helpers import double, gradients, laid_out, random
from tests.tolerances import assert_close


def maps(
    device: str,
    dtype: torch.dtype,
    layout: str,
    channels: list[int],
    grid: tuple[int, int],
    seed: int,
) -> list[Tensor]:
    return [
        laid_out(random(2, count, *grid, seed=seed + layer), layout).to(dtype).to(device)
        for layer, count in enumerate(channels)
    ]


def exact(queries: list[Tensor], supports: list[Tensor], clamp: bool = True) -> Tensor:
    return dense_correlation_reference(double(*queries), double(*supports), clamp, 1e-5)


@pytest.mark.parametrize("layout", ["first", "last", "cut"])
@pytest.mark.parametrize("clamp", [True, False])
def test_it_equals_the_reference(device, dtype, layout, clamp):
    queries = maps(device, dtype, layout, [24, 40], (5, 6), 0)
    supports = maps(device, dtype, layout, [24, 40], (3, 7), 9)
    result = dense_correlation(queries, supports, clamp=clamp, backend="cuda")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(queries, supports, clamp))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("channels", [1, 7, 8, 32, 33, 144])
def test_any_number_of_channels(device, dtype, layout, channels):
    queries = maps(device, dtype, layout, [channels], (3, 4), 0)
    supports = maps(device, dtype, layout, [channels], (3, 3), 9)
    result = dense_correlation(queries, supports, backend="cuda")
    assert_close(result.cpu(), exact(queries, supports))


@pytest.mark.parametrize(
    ("of_query", "of_support"), [((10, 14), (11, 13)), ((1, 1), (16, 17)), ((16, 8), (1, 129))]
)
def test_several_tiles_and_ragged_ends(device, dtype, of_query, of_support):
    queries = maps(device, dtype, "last", [16], of_query, 0)
    supports = maps(device, dtype, "last", [16], of_support, 9)
    result = dense_correlation(queries, supports, backend="cuda")
    assert_close(result.cpu(), exact(queries, supports))


def test_more_layers_than_one_launch_takes(device):
    queries = maps(device, torch.bfloat16, "last", [8] * 17, (2, 3), 0)
    supports = maps(device, torch.bfloat16, "first", [8] * 17, (2, 2), 50)
    result = dense_correlation(queries, supports, backend="cuda")
    assert_close(result.cpu(), exact(queries, supports))


def test_masked_positions_correlate_with_nothing(device, dtype):
    queries = maps(device, dtype, "last", [16], (2, 3), 0)
    supports = [one * 0 for one in maps(device, dtype, "last", [16], (2, 2), 9)]
    assert dense_correlation(queries, supports, backend="cuda").abs().max() == 0


def test_no_channels_correlate_with_nothing(device):
    empty = [torch.zeros(1, 0, 2, 2, device=device)]
    assert dense_correlation(empty, empty, backend="cuda").abs().max() == 0


def test_gradients_go_through(device):
    tensors = [random(1, 6, 3, 4).to(device), random(1, 6, 2, 3, seed=1).to(device)]
    along = [random(1, 1, 3, 4, 2, 3, seed=5)]
    ours, wanted = (
        gradients(lambda q, s, b=backend: dense_correlation([q], [s], backend=b), tensors, along)
        for backend in ("cuda", "reference")
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right.cpu().double())
