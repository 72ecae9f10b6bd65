"""center_pivot_conv4d: HSNet's 4D convolution, as two 2D convolutions around a shared pivot.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, eq. 4. With x over
query positions a and support positions b, and s the stride over the support:

    y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + b1 + b2

The centre counts in both sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.ops.explain import Explanation, explainers

# On support grids of at most so many positions a 3 x 3 window covers nearly everything, and one
# matrix product over all pairs of positions beats a convolution (2 x 2: 16 pairs, 36 taps).
_DENSE_POSITIONS = 4


def center_pivot_conv4d_reference(
    x: Tensor,  # (B, I, ha, wa, hb, wb)
    query_weight: Tensor,  # (O, I, k, k)
    query_bias: Tensor,  # (O,)
    support_weight: Tensor,  # (O, I, k, k)
    support_bias: Tensor,  # (O,)
    stride: int,
) -> Tensor:  # (B, O, ha, wa, hb / stride, wb / stride)
    """The plain form: every window where it stands."""
    batch, inputs, ha, wa, hb, wb = x.shape
    padding = query_weight.shape[-1] // 2
    at_query = x.permute(0, 2, 3, 1, 4, 5).reshape(-1, inputs, hb, wb)
    over_support = F.conv2d(at_query, support_weight, support_bias, stride, padding)
    over_support = over_support.view(batch, ha, wa, *over_support.shape[1:])
    pruned = x[..., ::stride, ::stride]
    at_support = pruned.permute(0, 4, 5, 1, 2, 3).reshape(-1, inputs, ha, wa)
    over_query = F.conv2d(at_support, query_weight, query_bias, 1, padding)
    over_query = over_query.view(batch, *pruned.shape[4:], *over_query.shape[1:])
    return over_support.permute(0, 3, 1, 2, 4, 5) + over_query.permute(0, 3, 4, 5, 1, 2)


def center_pivot_conv4d(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    *,
    stride: int = 1,
) -> Tensor:
    """Convolve hypercorrelations over the query and over the support, and add.

    Min et al., ICCV 2021, eq. 4. Only the support grid is strided.

    Args:
        x: (B, I, ha, wa, hb, wb) floating point; channels-last memory, as this function returns it,
            is read as it is.
        query_weight: (O, I, k, k), k odd: over (ha, wa).
        query_bias: (O,).
        support_weight: (O, I, k, k): over (hb, wb).
        support_bias: (O,).
        stride: over the support, at least 1.

    Returns:
        (B, O, ha, wa, ceil(hb / stride), ceil(wb / stride)), channels last in memory.

    Raises:
        TypeError: if an argument is no floating-point tensor.
        ValueError: if a shape or the stride does not fit.

    Example:
        >>> x, weight, bias = torch.ones(1, 2, 3, 3, 5, 4), torch.ones(8, 2, 3, 3), torch.zeros(8)
        >>> center_pivot_conv4d(x, weight, bias, weight, bias, stride=2).shape
        torch.Size([1, 8, 3, 3, 3, 2])
    """
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    last = x.permute(0, 2, 3, 4, 5, 1).contiguous()  # (B, ha, wa, hb, wb, I)
    out = over_support(last, support_weight, query_bias + support_bias, stride)
    pruned = last[:, :, :, ::stride, ::stride].permute(0, 3, 4, 1, 2, 5).contiguous()
    added = over_query(pruned, query_weight)
    out = out + added if torch.is_grad_enabled() else out.add_(added)
    return out.permute(0, 5, 1, 2, 3, 4)


def over_support(
    last: Tensor,  # (B, ha, wa, hb, wb, I), contiguous
    weight: Tensor,  # (O, I, k, k)
    bias: Tensor,  # (O,)
    stride: int,
) -> Tensor:  # (B, ha, wa, hb / stride, wb / stride, O)
    """The convolution over the support, at every query position."""
    batch, ha, wa, hb, wb, _ = last.shape
    grid = -(-hb // stride), -(-wb // stride)
    if hb * wb <= _DENSE_POSITIONS:
        dense = _dense(weight, (hb, wb), stride)
        out = F.linear(last.flatten(3).flatten(0, 2), dense, bias.repeat(grid[0] * grid[1]))
    else:
        windows = last.flatten(0, 2).permute(0, 3, 1, 2)
        out = F.conv2d(windows, weight, bias, stride, weight.shape[-1] // 2).permute(0, 2, 3, 1)
    return out.reshape(batch, ha, wa, *grid, -1)


def over_query(
    pruned: Tensor,  # (B, hb, wb, ha, wa, I), contiguous
    weight: Tensor,  # (O, I, k, k)
) -> Tensor:  # (B, ha, wa, hb, wb, O), not contiguous
    """The convolution over the query, at every support position that is left."""
    windows = pruned.flatten(0, 2).permute(0, 3, 1, 2)
    out = F.conv2d(windows, weight, None, 1, weight.shape[-1] // 2).permute(0, 2, 3, 1)
    return out.reshape(*pruned.shape[:5], -1).permute(0, 3, 4, 1, 2, 5)


def _dense(weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """A convolution over a small grid as one matrix (q O, p I), p input and q output positions."""
    kernel = weight.shape[-1]
    units = torch.eye(size[0] * size[1], dtype=weight.dtype, device=weight.device)
    taps = F.unfold(units.view(-1, 1, *size), kernel, padding=kernel // 2, stride=stride)
    matrix = torch.einsum("ptq,oit->qopi", taps, weight.flatten(2))
    return matrix.flatten(2).flatten(0, 1)


def _check(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    stride: int,
) -> None:
    tensors = {
        "x": x,
        "query_weight": query_weight,
        "query_bias": query_bias,
        "support_weight": support_weight,
        "support_bias": support_bias,
    }
    for name, one in tensors.items():
        if not isinstance(one, Tensor) or not one.is_floating_point():
            came = str(one.dtype) if isinstance(one, Tensor) else type(one).__name__
            raise expected_kind(name, "a floating-point tensor", came)
        if one.dtype != x.dtype or one.device != x.device:
            raise expected(name, f"{x.dtype} on {x.device}, as x", f"{one.dtype} on {one.device}")
    if x.ndim != 6:
        raise expected("x", "(B, I, ha, wa, hb, wb)", str(tuple(x.shape)))
    outputs, kernel = query_weight.shape[0], query_weight.shape[-1]
    wanted = (outputs, x.shape[1], kernel, kernel)
    for name in ("query_weight", "support_weight"):
        shape = tuple(tensors[name].shape)
        if shape != wanted or kernel % 2 == 0:
            raise expected(name, f"{wanted} with an odd kernel", str(shape))
    for name in ("query_bias", "support_bias"):
        if tensors[name].shape != (outputs,):
            raise expected(name, f"({outputs},)", str(tuple(tensors[name].shape)))
    if stride < 1:
        raise expected("stride", "at least 1", str(stride))


def _explain(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    *,
    stride: int = 1,
) -> Explanation:
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    lacking = "fastfss has no kernel of its own for this operation yet: it is convolutions of torch"
    return Explanation(
        "center_pivot_conv4d", "reference", dict.fromkeys(("native", "triton", "cuda"), lacking)
    )


explainers["center_pivot_conv4d"] = _explain
