"""dense_match, dense_match_sums: every query against every selected key, reduced on the fly.

    s_ij = scale q^_i . k^_j,   p_ij = w_j e^{s_ij - t_i}
    softmax   out_i = sum_j p_ij v_j / sum_j p_ij
    sums      e^{t_i} sum_j p_ij v_j,   e^{t_i} sum_j p_ij
    max       out_i = max_j s_ij

t_i is 0 where the logits are bounded (cosines, |scale| <= 40; in float16, whose largest number is
65504, <= 5), else the largest logit of the row, found on the way. Only keys with a weight are
visited: their indices and number stay on the device (_rows.Selection).

Up to 256 value channels, and for the maximum, one program (`_match`) takes a block of queries past
the keys: channels accumulate a tile of logits, then the tile meets the values, and nothing of the
matrix leaves the multiprocessor. Where queries are few, the keys are split and `_combine` adds.

With more value channels a multiprocessor's registers cannot hold a useful block of sums (64 x 1024
in float32 are all of them), and smaller value blocks would each make all logits again: 2.5 times
the arithmetic for SSP's 1024 channels. There _dense_match_blocks.py makes two products through a
workspace of bounded size that stays in the L2.

SSP at 473 px (N = 3600, M = 2700 selected, C = D = 1024): 39.8 GFLOP, 50 us at 790 TFLOP/s in 16
bits. PFENet's prior (C = 2048, M = 650): 9.6 GFLOP, 12 us.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._dense_match_blocks import match_in_blocks
from fastfss.kernels._launch import (
    Config,
    cdiv,
    choose,
    interpreted,
    new,
    power_of_two,
    precision,
    splits,
)
from fastfss.kernels._matching import Matching
from fastfss.kernels._tiles import chosen_keys, product, scaled

# Value channels that `_match` holds; more go through _dense_match_blocks.py.
MOST_VALUES = 256

# DCAMA's attention (8 x 64 x 48 x 48, 16 bits) on an H200: 82.2 us, with the second 84.3.
OF_FEW_VALUES = [Config(64, 64, 64, warps=4, stages=3), Config(128, 64, 64, warps=8, stages=3)]
# 64 x 256 sums are 64 registers of 256 threads.
OF_MANY_VALUES = [Config(64, 64, 64, warps=8, stages=2), Config(64, 32, 64, warps=4, stages=3)]
# PFENet's prior (C = 2048, 16 bits) on an H200, at batch 8 and 1: 509 us and 97.5, then 518 and
# 98.1, 537 and 97.9, when the first still spilled a tile of maxima.
OF_MAXIMA = [
    Config(128, 256, 64, warps=8, stages=3),
    Config(64, 128, 64, warps=4, stages=4),
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 64, 64, warps=4, stages=4),
]
# float32 takes twice the shared memory an element, and registers to split its operands.
OF_FLOAT32 = [Config(64, 64, 32, warps=8, stages=2), Config(64, 32, 32, warps=4, stages=3)]
OF_MANY_FLOAT32 = [Config(32, 32, 32, warps=8, stages=2), Config(64, 32, 32, warps=8, stages=2)]


@triton.jit
def _larger(a, b):
    """The larger; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _match(
    query, key, value, query_inverse, key_inverse, order, weights, counts, sums, totals, tops,
    batch, queries, keys, channels_u, values_u, query_step, query_row, key_step, key_row,
    value_step, value_row, parts, factor,
    UNIT: tl.constexpr, VALUE_UNIT: tl.constexpr, SELECT: tl.constexpr, NORMALIZE: tl.constexpr,
    MAXIMUM: tl.constexpr, ONLINE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, ROWS)
    pid = tl.program_id(0)
    i = pid % blocks * ROWS + tl.arange(0, ROWS)
    split = pid // blocks % parts
    b = (pid // blocks // parts).to(tl.int64)
    row_inside = i < queries
    channels, values = channels_u * UNIT, values_u * VALUE_UNIT
    d = tl.arange(0, VALUES)[None, :]

    query += b * query_step * UNIT + i[:, None] * (query_row * UNIT)
    key += b * key_step * UNIT
    value += b * value_step * VALUE_UNIT
    of_query = tl.full([ROWS], 1.0, tl.float32)
    if NORMALIZE:
        of_query = tl.load(query_inverse + b * queries + i, mask=row_inside, other=0.0)
    count = keys
    if SELECT:
        count = tl.load(counts + b)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, VALUES], tl.float32)
    for start in tl.range(split * COLUMNS, count, parts * COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        at, weight, inside = chosen_keys(order, weights, b, j, count, keys, SELECT)
        of_key = tl.full([COLUMNS], 1.0, tl.float32)
        if NORMALIZE:
            of_key = tl.load(key_inverse + b * keys + at, mask=inside, other=0.0)
        logits = product(
            query, key + at[:, None] * (key_row * UNIT), channels, row_inside, inside,
            ROWS, COLUMNS, DEPTH, PRECISION,
        )  # fmt: skip
        logits = scaled(logits, factor, of_query, of_key, NORMALIZE)
        if MAXIMUM:
            logits = tl.where(inside[None, :], logits, float("-inf"))
            # At once: a tile of maxima beside the tile of sums would not fit the registers.
            top = _larger(top, tl.reduce(logits, 1, _larger))
        else:
            if ONLINE:
                logits = tl.where(inside[None, :], logits, float("-inf"))
                higher = tl.maximum(top, tl.max(logits, axis=1))
                # A row without a finite logit so far: any finite value keeps NaN away.
                base = tl.where(higher == float("-inf"), 0.0, higher)
                shrink = tl.exp2(top - base)
                total *= shrink
                result *= shrink[:, None]
                logits -= base[:, None]
                top = higher
            p = tl.where(inside[None, :], weight[None, :] * tl.exp2(logits), 0.0)
            total += tl.sum(p, axis=1)
            v = tl.load(
                value + at[:, None] * (value_row * VALUE_UNIT) + d,
                mask=inside[:, None] & (d < values),
                other=0.0,
            )
            result = tl.dot(p.to(v.dtype), v, result, input_precision=PRECISION)

    to = (split.to(tl.int64) * batch + b) * queries + i
    if MAXIMUM:
        tl.store(tops + to, top, mask=row_inside)
    else:
        if ONLINE:
            tl.store(tops + to, top, mask=row_inside)
        tl.store(totals + to, total, mask=row_inside)
        sums += to[:, None] * values + d
        tl.store(sums, result, mask=row_inside[:, None] & (d < values))


@triton.jit
def _combine_maxima(tops, out, parts, rows, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    result = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in range(parts):
        top = tl.load(tops + split * rows + i, mask=i < rows, other=0.0)
        result = tl.maximum(result, top, propagate_nan=tl.PropagateNan.ALL)
    # No key: zero.
    tl.store(out + i, tl.where(result == float("-inf"), 0.0, result), mask=i < rows)


@triton.jit
def _combine(
    sums, totals, tops, out, total_out, top_out,
    parts, rows, queries, values, out_b, out_c, out_p,
    ONLINE: tl.constexpr, DIVIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_P)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = p < queries
    there = inside[:, None] & (d < values)[None, :]
    row = b * queries + p

    top = tl.zeros([BLOCK_P], tl.float32)
    if ONLINE:
        top = tl.full([BLOCK_P], float("-inf"), tl.float32)
        for split in range(parts):
            one = tl.load(tops + split * rows + row, mask=inside, other=0.0)
            top = tl.maximum(top, one, propagate_nan=tl.PropagateNan.ALL)
        top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_P], tl.float32)
    result = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for split in range(parts):
        at = split * rows + row
        share = tl.full([BLOCK_P], 1.0, tl.float32)
        if ONLINE:
            share = tl.exp2(tl.load(tops + at, mask=inside, other=0.0) - top)
        total += share * tl.load(totals + at, mask=inside, other=0.0)
        part = tl.load(sums + at[:, None] * values + d[None, :], mask=there, other=0.0)
        result += share[:, None] * part
    if DIVIDE:
        empty = total == 0.0
        result *= tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, total))[:, None]
    elif ONLINE:
        result *= tl.exp2(top)[:, None]
        total *= tl.exp2(top)
    to = out + b * out_b + p[:, None] * out_p + d[None, :] * out_c
    tl.store(to, result, mask=there)
    if tl.program_id(1) == 0:
        tl.store(total_out + row, total, mask=inside)
        tl.store(top_out + row, top, mask=inside)


def forward(
    query: Tensor,  # (B, C, N)
    key: Tensor,  # (B, C, M)
    value: Tensor | None,  # (B, D, M)
    weights: Tensor | None,  # (B, M)
    scale: float,
    normalize: bool,
    reduce: str,  # "softmax", "max" or "sums"
    eps: float,
    out: Tensor,  # (B, D, N), any strides; (B, N) contiguous for "max"
    totals: Tensor | None = None,  # (B, N) float32, contiguous: sum_j w_j e^{s_ij} of "sums"
) -> None:
    """Into `out` and, for "sums", `totals`."""
    matching = Matching.of(query, key, value, weights, scale, normalize, eps)
    if reduce == "max":
        maxima(matching, scale, out)
    else:
        match(matching, out, divide=reduce == "softmax", totals=totals)


def maxima(matching: Matching, factor: float, out: Tensor) -> None:
    """The largest of factor times the products, into `out` (B, N); 0 without keys."""
    batch, queries = out.shape
    configs = OF_FLOAT32 if matching.query.tensor.dtype == torch.float32 else OF_MAXIMA
    tops = _launch(matching, factor, configs, values=0, maximum=True)[2]
    block = 16 if interpreted() else 256
    _combine_maxima[(cdiv(batch * queries, block),)](
        tops, out, len(tops), batch * queries, BLOCK=block, num_warps=4
    )


def match(
    matching: Matching,
    out: Tensor,  # (B, D, N)
    *,
    divide: bool,
    totals: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums, divided or not, into `out`; returns the totals and t, in units of log 2.

    Not divided, sums and totals have their factor e^t; divided, the totals lack it.
    """
    batch, values, queries = out.shape
    totals = new(out, batch, queries) if totals is None else totals
    tops = new(out, batch, queries)
    if values > MOST_VALUES:
        if matching.bounded:
            tops.zero_()
        else:
            maxima(matching, matching.factor, tops)
        match_in_blocks(matching, tops, out, totals, divide=divide)
        return totals, tops
    if matching.query.tensor.dtype == torch.float32:
        configs = OF_FLOAT32 if values <= 64 else OF_MANY_FLOAT32
    else:
        configs = OF_FEW_VALUES if values <= 64 else OF_MANY_VALUES
    sums, partial, partial_tops = _launch(matching, matching.factor, configs, values=values)
    block_p = 16 if interpreted() else 32
    block_d = min(128, power_of_two(values, 16))
    _combine[(batch * cdiv(queries, block_p), cdiv(values, block_d))](
        *(sums, partial, partial_tops, out, totals, tops),
        *(len(sums), batch * queries, queries, values, *out.stride()),
        ONLINE=not matching.bounded,
        DIVIDE=divide,
        BLOCK_P=block_p,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return totals, tops


def _launch(
    matching: Matching, factor: float, configs: list[Config], *, values: int, maximum: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, totals and tops of every split of the keys, a leading axis."""
    query, key, value = matching.query, matching.key, matching.value
    batch, queries, keys = len(query.tensor), query.positions, key.positions
    dtype = query.tensor.dtype
    name = "dense_match_max" if maximum else "dense_match"
    config = choose(name, configs)
    blocks = batch * cdiv(queries, config.rows)
    parts = splits(blocks, cdiv(keys, config.columns), query.tensor.device)
    tops = new(query.tensor, parts, batch, queries)
    totals = tops if maximum else torch.empty_like(tops)
    sums = tops if maximum else new(query.tensor, parts, batch, queries, values)
    # What a call does not use needs an address all the same.
    value = query if value is None else value
    common = math.gcd(query.unit, key.unit)
    _match[(blocks * parts,)](
        *(query.tensor, key.tensor, value.tensor, query.inverse, key.inverse),
        *(*matching.selected, sums, totals, tops),
        *(batch, queries, keys, query.tensor.shape[2] // common, values // value.unit),
        *query.strides_in(common),
        *key.strides_in(common),
        *(*value.strides, parts, factor),
        UNIT=common,
        VALUE_UNIT=value.unit,
        SELECT=matching.selection is not None,
        NORMALIZE=matching.normalize,
        MAXIMUM=maximum,
        ONLINE=not (matching.bounded or maximum),
        PRECISION=precision(dtype),
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        VALUES=power_of_two(values, 16),
        **config.options(),
    )
    return sums, totals, tops
