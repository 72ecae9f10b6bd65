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


@triton.jit
def logits_of_tile(
    query, key, query_inverse, key_inverse, order, weights,
    b, i, row_inside, j, count, queries, keys, channels,
    query_step, query_row, key_step, key_row, factor,
    UNIT: tl.constexpr, SELECT: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits of queries `i` and selected keys `j`, in units of log 2.

    With them the keys' indices and weights and which of them exist, and the inverse norms of both.
    """
    at, weight, inside = chosen_keys(order, weights, b, j, count, keys, SELECT)
    of_query = tl.full([ROWS], 1.0, tl.float32)
    of_key = tl.full([COLUMNS], 1.0, tl.float32)
    if NORMALIZE:
        of_query = tl.load(query_inverse + b * queries + i, mask=row_inside, other=0.0)
        of_key = tl.load(key_inverse + b * keys + at, mask=inside, other=0.0)
    query += b * query_step * UNIT + i[:, None] * (query_row * UNIT)
    key += b * key_step * UNIT + at[:, None] * (key_row * UNIT)
    logits = product(query, key, channels, row_inside, inside, ROWS, COLUMNS, DEPTH, PRECISION)
    logits = scaled(logits, factor, of_query, of_key, NORMALIZE)
    return logits, at, weight, inside, of_query, of_key
