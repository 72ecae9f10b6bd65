"""The one table of tolerances, relative to the largest magnitude of the expected tensor."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = {
    # float64 runs through the reference alone: only the order of sums differs.
    torch.float64: 1e-12,
    # float32 sums of up to 1e4 terms in another order than the reference's.
    torch.float32: 2e-5,
    # float16 keeps 11 bits; inputs and outputs are rounded, sums are in float32.
    torch.float16: 2e-3,
    # bfloat16 keeps 8 bits; inputs and outputs are rounded, sums are in float32.
    torch.bfloat16: 1.6e-2,
}


def assert_close(actual: Tensor, wanted: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Compare in float64, with the tolerance of `dtype` (default: the actual tensor's)."""
    assert actual.shape == wanted.shape, f"shape {tuple(actual.shape)} != {tuple(wanted.shape)}"
    scale = float(wanted.detach().double().abs().max()) if wanted.numel() else 0.0
    bound = RELATIVE[dtype or actual.dtype] * max(scale, 1e-30)
    difference = (actual.detach().double() - wanted.detach().double()).abs()
    worst = float(difference.max()) if difference.numel() else 0.0
    assert worst <= bound, f"largest error {worst:.3e} > {bound:.3e}"  # also False for NaN


def assert_at_most_twice_the_error(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The bound of low precision: twice the error of plain PyTorch in the same dtype."""
    error, bound = ((r.detach().double() - exact.to(r.device)).abs().max() for r in (ours, plain))
    assert error <= 2 * bound + 1e-6, f"{error:.2e}, plain PyTorch {bound:.2e}"
