from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import _cuda_call
from fastfss.ops.center_pivot_conv4d import (
    _few_channels,
    _few_channels_plan,
    _output,
    center_pivot_conv4d_reference,
)
from tests.kernels.helpers import double, random
from tests.tolerances import assert_close

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=HALVES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    wanted: torch.dtype = request.param
    return wanted


def inputs(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], outputs: int, kernel: int
) -> list[Tensor]:
    """x (B, I, ha, wa, hb, wb), both weights and biases."""
    weights = [random(outputs, shape[1], kernel, kernel, seed=seed) for seed in (1, 2)]
    made = [random(*shape), *weights, *(random(outputs, seed=seed) for seed in (3, 4))]
    return [one.to(dtype).to(device) for one in made]


def convolved(tensors: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    """(B, ha, wa, hb / stride, wb / stride, O), and statistics (2, B, blocks, O)."""
    x, weight = tensors[:2]
    plan = _few_channels_plan(x, weight, stride)
    assert plan is not None
    scratch, together = plan
    out = _output(x, weight, stride)
    blocks = -(-out[0, :, :, 0, 0, 0].numel() // together)
    statistics = x.new_empty(2, len(x), blocks, out.shape[-1]).float()
    _few_channels(scratch, *tensors, stride, out, statistics)
    again = torch.empty_like(out)
    _few_channels(scratch, *tensors, stride, again, None)
    assert torch.equal(out, again) or bool(out.isnan().any())
    return out, statistics


def exact(tensors: list[Tensor], stride: int) -> Tensor:
    x, query_weight, support_weight, query_bias, support_bias = double(*tensors)
    result = center_pivot_conv4d_reference(
        x, query_weight, query_bias, support_weight, support_bias, stride
    )
    return result.permute(0, 2, 3, 4, 5, 1)


def blocks(tensors: list[Tensor], stride: int) -> list[Tensor]:
    """(B, rows, O) of each of the blocks that statistics are of."""
    plan = _few_channels_plan(tensors[0], tensors[1], stride)
    assert plan is not None
    results = exact(tensors, stride).flatten(1, 2)
    return [one.flatten(1, 3) for one in results.split(plan[1], dim=1)]


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "stride"),
    [
        ((2, 3, 3, 3, 5, 5), 16, 3, 2),
        ((1, 4, 3, 7, 10, 14), 16, 5, 4),
        ((2, 6, 2, 3, 9, 7), 16, 5, 4),
        ((1, 1, 1, 1, 6, 8), 4, 5, 4),
        ((1, 1, 2, 2, 3, 1), 2, 3, 2),
        ((3, 3, 4, 2, 4, 6), 4, 3, 4),
        ((1, 4, 7, 5, 7, 9), 16, 3, 2),
        ((2, 8, 2, 2, 8, 6), 10, 3, 2),
        ((1, 6, 5, 1, 6, 12), 16, 5, 2),
        ((1, 4, 2, 3, 33, 30), 16, 5, 2),
        ((1, 4, 1, 2, 25, 27), 16, 3, 2),
        ((1, 8, 2, 1, 17, 22), 16, 5, 2),
        ((1, 2, 1, 7, 2, 2), 16, 5, 6),
    ],
    ids=[
        *("level 3", "level 1", "level 2", "one query position", "one column", "batch of 3"),
        *("several rows of queries", "eight channels", "six even channels", "several passes"),
        *("several passes of k 3", "several passes of eight channels", "less than a window"),
    ],
)
def test_it_equals_the_reference(device, dtype, shape, outputs, kernel, stride):
    tensors = inputs(device, dtype, shape, outputs, kernel)
    result, (means, deviations) = convolved(tensors, stride)
    wanted = exact(tensors, stride)
    assert_close(result.cpu(), wanted.cpu())
    for block, rows in enumerate(blocks(tensors, stride)):
        mean = rows.mean(dim=1, keepdim=True)
        assert_close(means[:, block].cpu(), mean[:, 0].cpu())
        assert_close(deviations[:, block].cpu(), (rows - mean).square().sum(dim=1).cpu())


@pytest.mark.parametrize("start", [0, 1, 2])
def test_views_of_larger_planes(device, dtype, start):
    """Channels and items apart, from odd addresses too, where the rows are not copied in pairs."""
    tensors = inputs(device, dtype, (2, 3, 2, 3, 6, 8), 16, 5)
    x = tensors[0]
    memory = torch.full((2, 5 * x[0, 0].numel() + 1), torch.nan, dtype=dtype, device=device)
    strides = memory.stride(0), x[0, 0].numel(), *x.stride()[2:]
    tensors[0] = memory.as_strided(x.shape, strides, start).copy_(x)
    result, _ = convolved(tensors, 4)
    assert_close(result.cpu(), exact(tensors, 4).cpu())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 4), (5, 6)])
def test_nan_beside_every_window_stays_there(device, dtype, kernel, stride):
    tensors = inputs(device, dtype, (1, 3, 2, 2, 9, 14), 4, kernel)
    wanted = exact(tensors, stride)
    tensors[0][..., kernel // 2 + 1 :: stride] = torch.nan
    result, statistics = convolved(tensors, stride)
    assert_close(result.cpu(), wanted.cpu())
    assert statistics.isfinite().all()


def test_nan_in_a_window_is_kept(device, dtype):
    tensors = inputs(device, dtype, (1, 4, 3, 3, 8, 8), 4, 5)
    tensors[0][0, 1, 1, 1, 5, 6] = torch.nan
    result, _ = convolved(tensors, 4)
    assert torch.equal(result.isnan(), exact(tensors, 4).to(result.device).isnan())


def test_means_far_from_zero_cost_no_digits(device, dtype):
    tensors = inputs(device, dtype, (1, 3, 2, 2, 14, 14), 4, 3)
    tensors[3] += 100
    _, (_, deviations) = convolved(tensors, 2)
    for block, rows in enumerate(blocks(tensors, 2)):
        apart = (rows - rows.mean(dim=1, keepdim=True)).square().sum(dim=1)
        assert_close(deviations[:, block].cpu(), apart.cpu(), dtype=torch.float16)


def test_weights_in_any_layout(device, dtype):
    """They are copied into one layout, and the copies outlast the call."""
    tensors = inputs(device, dtype, (1, 3, 2, 3, 6, 8), 16, 5)
    apart = [one.contiguous(memory_format=torch.channels_last) for one in tensors[1:3]]
    result, _ = convolved([tensors[0], *apart, *tensors[3:]], 4)
    assert_close(result.cpu(), exact(tensors, 4).cpu())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((1, 4, 4, 20, 50, 50), 5, 4), ((1, 6, 5, 25, 25, 25), 5, 4), ((2, 3, 13, 13, 13, 13), 3, 2)],
    ids=["50 x 50", "25 x 25", "13 x 13"],
)
def test_hsnets_levels(device, dtype, shape, kernel, stride):
    """Blocks of several query positions, over the ends of rows."""
    tensors = inputs(device, dtype, shape, 16, kernel)
    result, _ = convolved(tensors, stride)
    assert_close(result.cpu(), exact(tensors, stride).cpu())


def test_repeats_to_the_last_bit(device, dtype):
    tensors = inputs(device, dtype, (2, 4, 4, 5, 10, 8), 16, 5)
    for once, twice in zip(convolved(tensors, 2), convolved(tensors, 2), strict=True):
        assert torch.equal(once, twice)


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "stride"),
    [
        ((1, 9, 2, 2, 6, 6), 16, 3, 2),
        ((1, 3, 2, 2, 6, 6), 18, 3, 2),
        ((1, 3, 2, 2, 6, 6), 5, 3, 2),
        ((1, 3, 2, 2, 6, 6), 16, 7, 2),
        ((1, 3, 2, 2, 6, 6), 16, 3, 1),
        ((1, 8, 2, 2, 99, 99), 16, 5, 4),
    ],
    ids=["channels", "outputs", "odd outputs", "window", "stride", "shared memory"],
)
def test_triton_keeps_the_calls_that_it_does_not_serve(device, shape, outputs, kernel, stride):
    x, weight, *_ = inputs(device, torch.float16, shape, outputs, kernel)
    assert _few_channels_plan(x, weight, stride) is None


def test_triton_keeps_float32_and_interleaved_channels(device):
    x, weight, *_ = inputs(device, torch.float16, (1, 3, 2, 2, 6, 6), 16, 3)
    assert _few_channels_plan(x, weight, 2) is not None
    assert _few_channels_plan(x.float(), weight.float(), 2) is None
    last = x.permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)
    assert _few_channels_plan(last, weight, 2) is None


def test_without_cuda_kernels_triton_serves(monkeypatch):
    monkeypatch.setattr(_cuda_call, "module", None)
    x, weight, *_ = inputs("cpu", torch.float16, (1, 3, 2, 2, 6, 6), 16, 3)
    assert _few_channels_plan(x, weight, 2) is None
