"""The kernels' exponential, csrc/include/fastfss/exp.h."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call


def native_exp(values: Tensor) -> Tensor:
    assert _native_call.module is not None
    out = torch.full_like(values, float("nan"))
    _native_call.module.probe_exp(_native_call.view(values), _native_call.view(out))
    return out


@pytest.mark.parametrize("low,high", [(-87.3, 88.0), (-40.0, 40.0), (-1e-3, 1e-3)])
def test_error_is_at_most_two_units_in_the_last_place(isa: str, low: float, high: float) -> None:
    x = torch.linspace(low, high, 1_000_003)
    exact = x.double().exp()
    unit = torch.exp2(exact.log2().floor() - 23)
    error = (native_exp(x).double() - exact).abs() / unit
    assert error.max() <= 2


def test_it_ends_in_zero_and_keeps_nan(isa: str) -> None:
    x = torch.tensor([0.0, -87.4, -1000.0, float("-inf"), float("nan")])
    result = native_exp(x)
    assert result[:4].tolist() == [1, 0, 0, 0]
    assert result[4].isnan()
