from __future__ import annotations

import pytest

from fastfss.ops._gpu_inference import weighted_maps
from tests.kernels.helpers import laid_out, random
from tests.tolerances import assert_close


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
