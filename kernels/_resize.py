"""Bilinear resizing as torch.nn.functional.interpolate does it (no antialias), and its adjoint.

Along one axis, position t of the new grid lies at s(t) of the old one,

    align_corners:  s(t) = t (old - 1) / (new - 1)
    else:           s(t) = max(0, (t + 1/2) old / new - 1/2)

and A[t, i] = 1 - a for i = floor(s), a for min(i + 1, old - 1), a = s - floor(s). Of an image m

    the resize   A_rows m A_columns^T           the adjoint   A_rows^T m A_columns

A program makes one row of the result. It adds up the few rows of the image that have a share in it
(two, or for the adjoint about 2 / scale), then multiplies by the matrix of the columns, whose
elements are computed where they are needed. That matrix is mostly zeros, but 60 rows of
60 x 473 products are nothing beside one launch; gathering by the columns would read the image in
single elements.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import interpreted, power_of_two


@triton.jit
def _share(t, i, old, scale, ALIGN_CORNERS: tl.constexpr):
    """A[t, i]."""
    position = t.to(tl.float32)
    source = position * scale if ALIGN_CORNERS else (position + 0.5) * scale - 0.5
    source = tl.maximum(source, 0.0)
    first = tl.minimum(source.to(tl.int32), old - 1)
    rest = tl.minimum(tl.maximum(source - first.to(tl.float32), 0.0), 1.0)
    second = tl.minimum(first + 1, old - 1)
    return tl.where(first == i, 1.0 - rest, 0.0) + tl.where(second == i, rest, 0.0)


@triton.jit
def _first(at, scale, ALIGN_CORNERS: tl.constexpr, ADJOINT: tl.constexpr):
    """The first row of the image with a share in row `at` of the result, or one before it."""
    position = at.to(tl.float32)
    if ADJOINT:
        # The least t with s(t) > at - 1, less one for rounding; all of them where s is constant.
        step = tl.where(scale > 0.0, scale, 1.0)
        below = (position - 1.0) / step if ALIGN_CORNERS else (position - 0.5) / step - 0.5
        begin = tl.where(scale > 0.0, tl.maximum(below - 1.0, 0.0), 0.0)
    else:
        source = position * scale if ALIGN_CORNERS else (position + 0.5) * scale - 0.5
        begin = tl.maximum(source, 0.0)
    return begin.to(tl.int32)


@triton.jit
def _resize(
    images, out,
    maps, height, width, new_height, new_width, stride_b, stride_m, stride_y, stride_x,
    row_scale, column_scale, span,
    ALIGN_CORNERS: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    y = tl.program_id(0) % new_height
    image = tl.program_id(0) // new_height
    images += (image // maps).to(tl.int64) * stride_b + (image % maps).to(tl.int64) * stride_m
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    first = _first(y, row_scale, ALIGN_CORNERS, ADJOINT)

    result = tl.zeros([BLOCK_X], tl.float32)
    for start in range(0, width, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        rows = tl.zeros([BLOCK_W], tl.float32)
        for step in range(span):
            row = first + step
            if ADJOINT:
                share = _share(row, y, new_height, row_scale, ALIGN_CORNERS)
            else:
                share = _share(y, row, height, row_scale, ALIGN_CORNERS)
            shares = tl.where((column < width) & (row < height), share, 0.0)
            at = images + row * stride_y + column * stride_x
            rows += shares * tl.load(at, mask=shares != 0.0, other=0.0).to(tl.float32)
        if ADJOINT:
            matrix = _share(column[None, :], x[:, None], new_width, column_scale, ALIGN_CORNERS)
        else:
            matrix = _share(x[:, None], column[None, :], width, column_scale, ALIGN_CORNERS)
        result += tl.sum(matrix * rows[None, :], axis=1)
    to = out + (image.to(tl.int64) * new_height + y) * new_width + x
    tl.store(to, result, mask=x < new_width)


def _scale(old: int, new: int, align_corners: bool) -> float:
    if align_corners:
        return (old - 1) / (new - 1) if new > 1 else 0.0
    return old / new


def resize(
    images: Tensor,  # (B, M, H, W), floating point, bool or uint8
    size: tuple[int, int],
    *,
    align_corners: bool,
    adjoint: bool,
) -> Tensor:  # (B, M, h, w), float32
    """Resize to `size`; or apply the adjoint of the resize from `size` to the images' own size."""
    if images.dtype == torch.bool:
        images = images.view(torch.uint8)
    elif images.dtype == torch.float64:
        images = images.float()
    batch, maps, height, width = images.shape
    out = torch.empty((batch, maps, *size), dtype=torch.float32, device=images.device)
    pairs = zip((height, width), size, strict=True)
    grids = [(new, old) if adjoint else (old, new) for old, new in pairs]
    row_scale, column_scale = (_scale(old, new, align_corners) for old, new in grids)
    span = 2
    if adjoint:
        span = height if row_scale == 0 else int(2 / row_scale) + 4
    # The columns' matrix passes through registers in blocks of 4096 elements: 16 a thread.
    block_x = min(128, power_of_two(size[1], 16))
    block_w = 16 if interpreted() else min(4096 // block_x, power_of_two(width, 16))
    _resize[(batch * maps * size[0], -(-size[1] // block_x))](
        *(images, out, maps, height, width, *size, *images.stride()),
        *(row_scale, column_scale, span),
        ALIGN_CORNERS=align_corners,
        ADJOINT=adjoint,
        BLOCK_X=block_x,
        BLOCK_W=block_w,
        num_warps=8,
    )
    return out
