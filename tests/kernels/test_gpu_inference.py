from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastfss.ops._gpu_inference import max_pool, resize_and_add, weighted_maps
from tests.kernels.helpers import laid_out, random
from tests.tolerances import assert_close


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (2, 2, 0)])
@pytest.mark.parametrize("channels", [8, 24])
def test_it_is_the_modules(device, dtype, kernel, stride, padding, channels):
    maps = laid_out(random(2, channels, 7, 10), "last").to(dtype).to(device)
    maps[0, 1, 2, 3] = torch.nan
    pool = nn.MaxPool2d(kernel, stride, padding)
    result = max_pool(maps, pool)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result.nan_to_num(7.0), pool(maps).nan_to_num(7.0))


@pytest.mark.parametrize("size", [(9, 12), (5, 7), (1, 1)])
def test_an_enlarged_map_plus_another(device, dtype, size):
    small = random(2, 5, 4, 16).to(dtype).to(device)
    large = random(2, *size, 16, seed=1).to(dtype).to(device)
    result = resize_and_add(small, large)
    wanted = F.interpolate(
        small.double().permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    assert_close(result, large.double() + wanted, dtype=dtype)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("blended", [False, True])
def test_weighted_maps(device, dtype, layout, count, blended):
    parts = tuple(laid_out(random(2, 6, 5, 7, seed=s), layout).to(device) for s in range(count))
    weights, constant = random(2, 5, 7).to(device), random(2, 6).to(dtype).to(device)
    other = laid_out(random(2, 6, 5, 7, seed=5), layout).to(dtype).to(device) if blended else None
    result = weighted_maps(parts, weights, constant, dtype, other, 0.3)
    wanted = (
        sum(parts).double() * weights.double().unsqueeze(1) + constant.double()[..., None, None]
    )
    if blended:
        wanted = wanted + 0.3 * other.double()
    assert result.dtype == dtype
    assert result.stride() == parts[0].stride()
    assert_close(result, wanted, dtype=dtype)
