from __future__ import annotations

import pytest
import torch.nn.functional as F

from fastfss.ops._gpu_inference import enlarge
from tests.kernels.helpers import random
from tests.tolerances import assert_close


@pytest.mark.parametrize("size", [(9, 12), (5, 7), (1, 1)])
@pytest.mark.parametrize("added", [False, True])
def test_it_is_bilinear_with_aligned_corners(device, dtype, size, added):
    small = random(2, 5, 4, 16).to(dtype).to(device)
    add = random(2, *size, 16, seed=1).to(dtype).to(device) if added else None
    result = enlarge(small, size, add)
    wanted = F.interpolate(
        small.double().permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    assert_close(result, wanted + add.double() if added else wanted, dtype=dtype)
