"""dense_match with many value channels: two products through a workspace of bounded size.

    P[i, j] = w_j e^{s_ij - t_i}                     a block of queries, every selected key
    out_i = sum_j P[i, j] v_j [/ sum_j P[i, j]]

P of a block has about 2^24 elements, 32 MiB in 16 bits: it stays in the L2 (50 MB on an H100)
between the product that writes it and the one that reads it, and memory grows neither with the
batch nor with the number of shots. A block is as many items of the batch as fit with all their
queries, so that their keys and values are read from memory once; an item that does not fit alone is
cut into blocks of its queries. P is rounded to the inputs' dtype, as in any flash attention, and
the totals are of the rounded elements. Each tile writes the sums of its rows to a place of its own;
the second product adds them in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Config, cdiv, choose, interpreted, new, precision
from fastfss.kernels._matching import Matching
from fastfss.kernels._rows import Rows
from fastfss.kernels._tiles import logits_of_tile

# Elements of P: 512 tiles of 128 x 256, four for every multiprocessor. 60 x 60 queries and keys,
# SSP's, are 0.77 of it; parts of one item exceed it by less than a row of tiles.
WORKSPACE = 1 << 24

# Depths divide columns, so that whole steps of the second product lie within tiles of the first.
# Both products of SSP's shapes (C = D = 1024, 3600 positions, 16 bits) on an H200, at batch 8 and
# 1: 1199 us and 126 with the first of EXPONENTIALS, 1309 and 130 with the second.
EXPONENTIALS = [
    Config(128, 256, 64, warps=8, stages=3),
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 128, 64, warps=4, stages=4),
    Config(64, 256, 64, warps=4, stages=4),
]
# The products with P. Values, on the same card at batch 8: 1308 us in all, with the second 1377.
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


# Items' counts begin at any multiple of 4 bytes: no variant of a kernel for each alignment.
@triton.jit(do_not_specialize_on_alignment=["counts"])
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


@triton.jit(do_not_specialize_on_alignment=["counts"])
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
    """Block sizes of a product with P."""
    return choose(kernel, CONFIGS_FLOAT32 if dtype.itemsize == 4 else CONFIGS)


@dataclass(frozen=True)
class Block:
    """What P holds at a time: items [start, stop) of the batch, their queries from `first` on."""

    start: int
    stop: int
    first: int
    rows: int


def blocks_of(batch: int, queries: int, pitch: int) -> list[Block]:
    """Blocks of about WORKSPACE elements: several items, or one's queries in whole tiles, evenly.

    Of an item, in the order of its queries.
    """
    if batch == 0 or queries == 0:
        return []
    tile = 16 if interpreted() else 128
    tiles = cdiv(queries, tile)
    of_item = queries * max(pitch, 1)
    launches = cdiv(batch, max(1, WORKSPACE // of_item))
    parts = min(tiles, cdiv(of_item, WORKSPACE))
    starts = [batch * one // launches for one in range(launches + 1)]
    # The last, whose last tile may not be whole, gets the odd tile.
    firsts = [*(tiles * one // parts * tile for one in range(parts)), queries]
    return [
        Block(start, stop, first, after - first)
        for start, stop in pairwise(starts)
        for first, after in pairwise(firsts)
    ]


def workspace(matching: Matching, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Memory for one block of P, flat, and the distance of its rows."""
    pitch = cdiv(matching.key.positions, 16) * 16
    blocks = blocks_of(len(matching.query.tensor), matching.query.positions, pitch)
    rows = max(((one.stop - one.start) * one.rows for one in blocks), default=0)
    return new(matching.query.tensor, rows * pitch, dtype=dtype), pitch


def match_in_blocks(
    matching: Matching, tops: Tensor, out: Tensor, totals: Tensor, *, divide: bool
) -> None:
    """Into `out` (B, D, N), any strides, and `totals` (B, N); see dense_match.match."""
    dtype = matching.query.tensor.dtype
    p, pitch = workspace(matching, dtype)
    exponentials = CONFIGS_FLOAT32 if dtype.itemsize == 4 else EXPONENTIALS
    config = choose("dense_match_exponentials", exponentials)
    for block in blocks_of(len(matching.query.tensor), matching.query.positions, pitch):
        items = slice(block.start, block.stop)
        of_items = matching.items(block.start, block.stop)
        query, key, value = of_items.query, of_items.key, of_items.value
        assert value is not None
        batch, keys, first, rows = len(query.tensor), key.positions, block.first, block.rows
        common, tiles = math.gcd(query.unit, key.unit), cdiv(keys, config.columns)
        tile_totals = new(out, batch, tiles, rows)
        _exponentials[(batch * cdiv(rows, config.rows) * tiles,)](
            *(query.tensor, key.tensor, query.inverse, key.inverse, *of_items.selected),
            *(tops[items], p, tile_totals, first, rows, query.positions, keys),
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
            of_items, p, pitch, value, out[items], first, rows, precision(dtype),
            totals=(tile_totals, config.columns, tops[items], totals[items]), divide=divide,
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
