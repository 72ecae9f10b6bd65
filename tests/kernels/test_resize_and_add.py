from __future__ import annotations

import pytest
import torch.nn.functional as F

from fastfss.ops._gpu_inference import resize_and_add
from tests.kernels.helpers import random
from tests.tolerances import assert_close


@pytest.mark.parametrize("size", [(9, 12), (5, 7), (1, 1)])
def test_an_enlarged_map_plus_another(device, dtype, size):
    small = random(2, 5, 4, 16).to(dtype).to(device)
    large = random(2, *size, 16, seed=1).to(dtype).to(device)
    result = resize_and_add(small, large)
    wanted = F.interpolate(
        small.double().permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    assert_close(result, large.double() + wanted, dtype=dtype)
