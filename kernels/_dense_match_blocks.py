"""dense_match with many value channels: two products through a workspace of bounded size.

    P[i, j] = w_j e^{s_ij - t_i}                     a block of queries, every selected key
    out_i = sum_j P[i, j] v_j [/ sum_j P[i, j]]

Queries are taken in blocks so that P has at most 2^24 elements, 32 MiB in 16 bits: it stays in the
L2 (50 MB on an H100) between the product that writes it and the one that reads it, and memory does
not grow with the number of shots. P is rounded to the inputs' dtype, as in any flash attention, and
the totals are of the rounded elements. Each tile writes the sums of its rows to a place of its own;
the second product adds them in order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Config, cdiv, choose, interpreted, new, precision
from fastfss.kernels._matching import Matching
from fastfss.kernels._rows import Rows
from fastfss.kernels._tiles import logits_of_tile

# Elements of P: 512 tiles of 128 x 256, four for every multiprocessor.
WORKSPACE = 1 << 24

# Depths divide columns, so that whole steps of the second product lie within tiles of the first.
CONFIGS = [
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 256, 64, warps=8, stages=3),
    Config(128, 128, 64, warps=4, stages=4),
    Config(64, 256, 64, warps=4, stages=4),
]
CONFIGS_FLOAT32 = [
    Config(128, 64, 32, warps=8, stages=3),
    Config(128, 128, 32, warps=8, stages=3),  # spills on sm_80
    Config(64, 64, 32, warps=4, stages=3),
]


@triton.jit
def _exponentials(
    query, key, query_inverse, key_inverse, order, weights, counts, tops, p, tile_totals,
    first, rows, queries, keys, channels_u, query_step, query_row, key_step, key_row, pitch_u,
    factor,
    UNIT: tl.constexpr, PITCH_UNIT: tl.constexpr, SELECT: tl.constexpr, NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(keys, COLUMNS)
    pid = tl.program_id(0)
    column = pid % column_blocks
    local = pid // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    b = (pid // column_blocks // row_blocks).to(tl.int64)
    count = keys
    if SELECT:
        count = tl.load(counts + b)
    if column * COLUMNS >= count:
        return
    i = first + local
    row_inside = local < rows
    j = column * COLUMNS + tl.arange(0, COLUMNS)
    logits, _, weight, inside, _, _ = logits_of_tile(
        query, key, query_inverse, key_inverse, order, weights,
        b, i, row_inside, j, count, queries, keys, channels_u * UNIT,
        query_step, query_row, key_step, key_row, factor,
        UNIT, SELECT, NORMALIZE, PRECISION, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    top = tl.load(tops + b * queries + i, mask=row_inside, other=0.0)
    result = weight[None, :] * tl.exp2(logits - top[:, None])
    result = tl.where(inside[None, :], result, 0.0).to(p.dtype.element_ty)
    total = tl.sum(result.to(tl.float32), axis=1)
    tl.store(tile_totals + (b * column_blocks + column) * rows + local, total, mask=row_inside)
    # Zeros behind the last key too: the next product reads whole steps.
    pitch = pitch_u * PITCH_UNIT
    p += b * rows * pitch + local[:, None] * pitch + j[None, :]
    tl.store(p, result, mask=row_inside[:, None] & (j < pitch)[None, :])


@triton.jit
def _times_rows(
    p, right, order, counts, tile_totals, tops, out, totals,
    first, rows, queries, keys, width_u, right_step, right_row, pitch_u, out_b, out_c, out_p, tile,
    UNIT: tl.constexpr, PITCH_UNIT: tl.constexpr, SELECT: tl.constexpr, TOTALS: tl.constexpr,
    DIVIDE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[first + i] = sum_j p[i, j] right[j], over the selected j."""
    width, pitch = width_u * UNIT, pitch_u * PITCH_UNIT
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(width, COLUMNS)
    pid = tl.program_id(0)
    column = pid % column_blocks
    local = pid // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    b = (pid // column_blocks // row_blocks).to(tl.int64)
    count = keys
    if SELECT:
        count = tl.load(counts + b)
    row_inside = local < rows
    d = column * COLUMNS + tl.arange(0, COLUMNS)

    p += b * rows * pitch + local[:, None] * pitch
    right += b * right_step * UNIT + d[None, :]
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, count, DEPTH):
        j = start + tl.arange(0, DEPTH)
        inside = j < count
        at = j
        if SELECT:
            at = tl.load(order + b * keys + j, mask=inside, other=0)
        # Not `inside`: a mask at any position would make these loads of single elements.
        x = tl.load(p + j[None, :], mask=row_inside[:, None] & (j < pitch)[None, :], other=0.0)
        y = tl.load(
            right + at[:, None] * (right_row * UNIT),
            mask=inside[:, None] & (d < width)[None, :],
            other=0.0,
        )
        result = tl.dot(x, y.to(x.dtype), result, input_precision=PRECISION)

    i = first + local
    if TOTALS:
        tiles = tl.cdiv(keys, tile)
        total = tl.zeros([ROWS], tl.float32)
        for one in range(tl.cdiv(count, tile)):
            of_tile = tile_totals + (b * tiles + one) * rows + local
            total += tl.load(of_tile, mask=row_inside, other=0.0)
        if DIVIDE:
            empty = total == 0.0
            result *= tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, total))[:, None]
        else:
            top = tl.exp2(tl.load(tops + b * queries + i, mask=row_inside, other=0.0))
            result *= top[:, None]
            total *= top
        if column == 0:
            tl.store(totals + b * queries + i, total, mask=row_inside)
    to = out + b * out_b + i[:, None] * out_p + d[None, :] * out_c
    tl.store(to, result, mask=row_inside[:, None] & (d < width)[None, :])


def config_for(kernel: str, dtype: torch.dtype) -> Config:
    """Block sizes of a product of this file."""
    return choose(kernel, CONFIGS_FLOAT32 if dtype.itemsize == 4 else CONFIGS)


def row_blocks(batch: int, queries: int, pitch: int) -> list[tuple[int, int]]:
    """First query and number of queries of each block: whole tiles, WORKSPACE elements in all."""
    tile = 16 if interpreted() else 128
    step = max(tile, WORKSPACE // (batch * pitch) // tile * tile)
    return [(first, min(step, queries - first)) for first in range(0, queries, step)]


def workspace(matching: Matching, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Memory for one block of P, flat, and the distance of its rows."""
    pitch = cdiv(matching.key.positions, 16) * 16
    batch, queries = len(matching.query.tensor), matching.query.positions
    rows = max((count for _, count in row_blocks(batch, queries, pitch)), default=0)
    return new(matching.query.tensor, batch * rows * pitch, dtype=dtype), pitch


def match_in_blocks(
    matching: Matching, tops: Tensor, out: Tensor, totals: Tensor, *, divide: bool
) -> None:
    """Into `out` (B, D, N), any strides, and `totals` (B, N); see dense_match.match."""
    query, key, value = matching.query, matching.key, matching.value
    assert value is not None
    dtype = query.tensor.dtype
    batch, keys = len(query.tensor), key.positions
    p, pitch = workspace(matching, dtype)
    config = config_for("dense_match_exponentials", dtype)
    common = math.gcd(query.unit, key.unit)
    tiles = cdiv(keys, config.columns)
    for first, rows in row_blocks(batch, query.positions, pitch):
        tile_totals = new(out, batch, tiles, rows)
        _exponentials[(batch * cdiv(rows, config.rows) * tiles,)](
            *(query.tensor, key.tensor, query.inverse, key.inverse, *matching.selected),
            *(tops, p, tile_totals, first, rows, query.positions, keys),
            *(query.tensor.shape[2] // common, *query.strides_in(common), *key.strides_in(common)),
            *(pitch // 16, matching.factor),
            UNIT=common,
            PITCH_UNIT=16,
            SELECT=matching.selection is not None,
            NORMALIZE=matching.normalize,
            PRECISION=precision(dtype),
            ROWS=config.rows,
            COLUMNS=config.columns,
            DEPTH=config.depth,
            **config.options(),
        )
        times_rows(
            matching, p, pitch, value, out, first, rows, precision(dtype),
            totals=(tile_totals, config.columns, tops, totals), divide=divide,
        )  # fmt: skip


def times_rows(
    matching: Matching,
    p: Tensor,
    pitch: int,
    right: Rows,  # (B, M, D)
    out: Tensor,  # (B, D, N)
    first: int,
    rows: int,
    dot: str,
    *,
    totals: tuple[Tensor, int, Tensor, Tensor] | None = None,
    divide: bool = False,
) -> None:
    """`_times_rows`; `totals`: those of tiles, the tiles' width, t, and where to put the totals."""
    config = config_for("dense_match_values", p.dtype)
    batch, width, queries = out.shape
    tile_totals, tile, tops, of_rows = (p, 1, p, p) if totals is None else totals
    order, _, counts = matching.selected
    _times_rows[(batch * cdiv(rows, config.rows) * cdiv(width, config.columns),)](
        *(p, right.tensor, order, counts, tile_totals, tops, out, of_rows),
        *(
            first,
            rows,
            queries,
            matching.key.positions,
            width // right.unit,
            *right.strides,
            pitch // 16,
        ),
        *(*out.stride(), tile),
        UNIT=right.unit,
        PITCH_UNIT=16,
        SELECT=matching.selection is not None,
        TOTALS=totals is not None,
        DIVIDE=divide,
        PRECISION=dot,
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        **config.options(),
    )
