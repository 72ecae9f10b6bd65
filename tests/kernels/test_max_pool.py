from __future__ import annotations

import pytest
import torch
from torch import nn

from fastfss.ops._gpu_inference import max_pool
from tests.kernels.helpers import laid_out, random


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (2, 2, 0)])
@pytest.mark.parametrize("channels", [8, 24])
def test_it_is_the_modules(device, dtype, kernel, stride, padding, channels):
    maps = laid_out(random(2, channels, 7, 10), "last").to(dtype).to(device)
    maps[0, 1, 2, 3] = torch.nan
    pool = nn.MaxPool2d(kernel, stride, padding)
    result = max_pool(maps, pool)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result.nan_to_num(7.0), pool(maps).nan_to_num(7.0))
