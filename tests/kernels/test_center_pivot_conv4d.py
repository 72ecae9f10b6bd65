from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import center_pivot_block, center_pivot_conv4d
from fastfss.ops.center_pivot_conv4d import center_pivot_conv4d_reference
from tests.kernels.helpers import double, random
from tests.tolerances import assert_close


def inputs(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], outputs: int, kernel: int
) -> list[Tensor]:
    """x (B, ha, wa, hb, wb, I), both weights and biases."""
    weights = [random(outputs, shape[-1], kernel, kernel, seed=seed) for seed in (1, 2)]
    made = [random(*shape), *weights, *(random(outputs, seed=seed) for seed in (3, 6))]
    return [one.to(dtype).to(device) for one in made]


def convolved(
    tensors: list[Tensor], stride: int, norm: tuple[Tensor, Tensor, int, float] | None = None
) -> Tensor:
    """(B, O, ha, wa, hb / stride, wb / stride)."""
    from fastfss.kernels import center_pivot_conv4d as kernels

    x, *weights = tensors
    batch, ha, wa, hb, wb, _ = x.shape
    out = x.new_empty((batch, ha, wa, -(-hb // stride), -(-wb // stride), len(weights[0])))
    kernels.forward(x, *weights, stride, out, norm)
    return out.permute(0, 5, 1, 2, 3, 4)


def exact(tensors: list[Tensor], stride: int) -> Tensor:
    x, *weights = double(*tensors)
    return center_pivot_conv4d_reference(
        x.permute(0, 5, 1, 2, 3, 4), *of_operation(weights), stride
    )


def of_operation(weights: list[Tensor]) -> list[Tensor]:
    """In the order of the operation's arguments: each weight with its bias."""
    query_weight, support_weight, query_bias, support_bias = weights
    return [query_weight, query_bias, support_weight, support_bias]


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "stride"),
    [
        ((2, 2, 3, 4, 3, 3), 5, 3, 1),
        ((1, 3, 2, 3, 5, 4), 16, 3, 2),
        ((1, 2, 2, 5, 6, 2), 4, 5, 4),
        ((1, 2, 2, 2, 2, 16), 18, 3, 2),
        ((1, 1, 1, 3, 2, 32), 8, 3, 1),
        ((1, 2, 3, 1, 1, 4), 4, 1, 1),
        ((2, 4, 5, 2, 3, 16), 16, 3, 1),
        ((1, 3, 4, 7, 6, 16), 20, 5, 4),
        ((1, 2, 2, 3, 3, 18), 8, 3, 2),
        ((2, 5, 4, 13, 9, 16), 24, 5, 4),
    ],
    ids=[
        *("odd", "strided", "wide window", "few taps a step", "two taps a step", "one tap"),
        *("several blocks of queries", "windows beside the grid", "a tap of many steps"),
        "rows of five taps",
    ],
)
def test_it_equals_the_reference(device, dtype, shape, outputs, kernel, stride):
    tensors = inputs(device, dtype, shape, outputs, kernel)
    result = convolved(tensors, stride)
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(tensors, stride))


@pytest.mark.parametrize("channels", [2, 3, 16])
def test_channels_in_planes(device, dtype, channels):
    last, *weights = inputs(device, dtype, (2, 2, 3, 5, 4, channels), 8, 3)
    planes = last.permute(0, 5, 1, 2, 3, 4).contiguous()
    result = center_pivot_conv4d(planes, *of_operation(weights), stride=2, backend="triton")
    assert_close(result.cpu(), exact([last, *weights], 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("channels", [2, 16])
def test_norm_and_relu_equal_pytorchs(device, dtype, groups, channels):
    tensors = inputs(device, dtype, (2, 4, 5, 3, 4, channels), 8, 3)
    tensors[3] += 20  # a mean far from zero costs no digits
    weight, bias = random(8, seed=4).to(dtype).to(device), random(8, seed=5).to(dtype).to(device)
    result = convolved(tensors, 2, (weight, bias, groups, 1e-5))
    wanted = F.relu(F.group_norm(exact(tensors, 2), groups, *double(weight, bias), eps=1e-5))
    if dtype == torch.float32:
        assert_close(result.cpu(), wanted)
    else:  # the convolution's result is rounded to 16 bits at about 20 before it is centred
        assert (result.cpu().double() - wanted).abs().max() < 20 * torch.finfo(dtype).eps


def test_norm_of_a_product_made_elsewhere(device):
    """The statistics of csrc/cuda/center_pivot_conv4d.cu: those of some query positions each."""
    from fastfss.kernels import center_pivot_conv4d as kernels

    tensors = inputs(device, torch.float32, (2, 3, 5, 6, 5, 3), 8, 3)
    wanted = exact(tensors, 2)
    rows = wanted.permute(0, 2, 3, 4, 5, 1).to(device)  # (B, ha, wa, hc, wc, O)
    blocks = rows.flatten(1, 2).split(4, dim=1)  # of 15 query positions: 4, 4, 4 and 3

    def product(out: Tensor, statistics: Tensor | None) -> None:
        assert statistics is not None
        out.copy_(rows)
        for number, block in enumerate(blocks):
            deviations, means = torch.var_mean(block.flatten(1, 3), dim=1, correction=0)
            statistics[0, :, number] = means
            statistics[1, :, number] = deviations * block[0, ..., 0].numel()

    weight, bias = random(8, seed=4).to(device), random(8, seed=5).to(device)
    out = torch.empty_like(rows, dtype=torch.float32)
    kernels.forward(*tensors, 2, out, (weight, bias, 4, 1e-5), (product, 4))
    normed = F.relu(F.group_norm(wanted, 4, *double(weight, bias), eps=1e-5))
    assert_close(out.permute(0, 5, 1, 2, 3, 4).cpu(), normed.cpu())


def test_repeats_to_the_last_bit(device, dtype):
    tensors = inputs(device, dtype, (1, 3, 3, 3, 3, 2), 4, 3)
    norm = (random(4, seed=4).to(dtype).to(device), random(4, seed=5).to(dtype).to(device), 2, 1e-5)
    assert torch.equal(convolved(tensors, 1, norm), convolved(tensors, 1, norm))


def test_the_operations_hand_their_calls_to_it(device, dtype):
    tensors = inputs(device, dtype, (2, 2, 3, 4, 3, 3), 8, 3)
    maps, weights = tensors[0].permute(0, 5, 1, 2, 3, 4), of_operation(tensors[1:])
    result = center_pivot_conv4d(maps, *weights, stride=2, backend="triton")
    assert_close(result.cpu(), exact(tensors, 2))
    bias = tensors[3]
    normed = center_pivot_block(maps, *weights, bias, bias, stride=2, groups=2, backend="triton")
    wanted = F.relu(F.group_norm(result.double(), 2, bias.double(), bias.double()))
    assert (normed.double() - wanted).abs().max() < 20 * torch.finfo(dtype).eps
