"""Steps that the kernels of dense_match share: one tile of products, one tile's keys."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    left, right, channels, left_inside, right_inside,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_c left[i, c] right[j, c]; `left` and `right` point to the first channel of each row."""
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, channels, DEPTH):
        c = start + tl.arange(0, DEPTH)[None, :]
        x = tl.load(left + c, mask=left_inside[:, None] & (c < channels), other=0.0)
        y = tl.load(right + c, mask=right_inside[:, None] & (c < channels), other=0.0)
        if x.dtype != y.dtype:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        result = tl.dot(x, tl.trans(y), result, input_precision=PRECISION)
    return result


@triton.jit
def chosen_keys(order, weights, b, j, count, keys, SELECT: tl.constexpr):
    """Indices and weights of the selected keys `j`, and which of them exist."""
    inside = j < count
    if SELECT:
        at = tl.load(order + b * keys + j, mask=inside, other=0)
        weight = tl.load(weights + b * keys + at, mask=inside, other=0.0)
    else:
        at = tl.where(inside, j, 0)
        weight = tl.where(inside, 1.0, 0.0)
    return at, weight, inside


@triton.jit
def scaled(products, factor, of_rows, of_columns, NORMALIZE: tl.constexpr):
    """factor x products, with the inverse norms of both sides where these are normalised."""
    if NORMALIZE:
        return products * (of_rows * factor)[:, None] * of_columns[None, :]
    return products * factor
