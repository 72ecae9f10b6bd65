"""The gradients of dense_match and dense_match_sums, in blocks.

With g the gradient of the result, h that of the denominators, hats for unit vectors and z_i the
total of row i:

    softmax   p_ij = w_j e^{s_ij - t_i} / z_i     slope_ij = g_i . v_j - g_i . out_i
    sums      p_ij = w_j e^{s_ij}                 slope_ij = g_i . v_j + h_i
    e_ij = scale p_ij slope_ij / (|q_i| |k_j|)
    dv_j = sum_i p_ij g_i,   a_i = sum_j e_ij k_j,   dq_i = a_i - q^_i (q^_i . a_i),   dk_j likewise

One kernel makes a tile of both products, logits and g . v, and writes p and e to workspaces of
bounded size (_dense_match_blocks.WORKSPACE); three products follow. float16 inputs take float32
workspaces and tf32 products, since p and e leave float16's range; tf32 keeps float16's ten bits.
Five products of 2 N M C: 99.5 GFLOP for SSP's first pass, 126 us at 790 TFLOP/s, after the forward
that gives t, z and out.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._dense_match_blocks import (
    Block,
    blocks_of,
    config_for,
    times_rows,
    workspace,
)
from fastfss.kernels._launch import (
    Config,
    cdiv,
    choose,
    interpreted,
    new,
    power_of_two,
    precision,
)
from fastfss.kernels._matching import Matching
from fastfss.kernels._rows import Rows
from fastfss.kernels._tiles import logits_of_tile, product
from fastfss.kernels.dense_match import match

# Two tiles of sums at once.
SLOPES = [
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 64, 64, warps=8, stages=3),
    Config(64, 128, 64, warps=4, stages=3),
]
SLOPES_FLOAT32 = [Config(64, 64, 32, warps=8, stages=3), Config(64, 64, 32, warps=4, stages=3)]


@triton.jit(do_not_specialize_on_alignment=["counts"])
def _slopes(
    query, key, value, grad, query_inverse, key_inverse, order, weights, counts,
    tops, row_scale, row_slope, p, e,
    first, rows, queries, keys, channels_u, values_u, query_step, query_row, key_step, key_row,
    value_step, value_row, grad_step, grad_row, pitch_u, factor, scale,
    UNIT: tl.constexpr, VALUE_UNIT: tl.constexpr, PITCH_UNIT: tl.constexpr,
    SELECT: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
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
    logits, at, weight, inside, of_query, of_key = logits_of_tile(
        query, key, query_inverse, key_inverse, order, weights,
        b, i, row_inside, j, count, queries, keys, channels_u * UNIT,
        query_step, query_row, key_step, key_row, factor,
        UNIT, SELECT, NORMALIZE, PRECISION, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    row = b * queries + i
    top = tl.load(tops + row, mask=row_inside, other=0.0)
    of_row = tl.load(row_scale + row, mask=row_inside, other=0.0)
    share = weight[None, :] * tl.exp2(logits - top[:, None]) * of_row[:, None]
    # Rounded before its use in e as well: half the registers.
    share = tl.where(inside[None, :], share, 0.0).to(p.dtype.element_ty)
    pitch = pitch_u * PITCH_UNIT
    to = b * rows * pitch + local[:, None] * pitch + j[None, :]
    # Zeros behind the last key too: the next product reads whole steps.
    there = row_inside[:, None] & (j < pitch)[None, :]
    tl.store(p + to, share, mask=there)

    grad += b * grad_step * VALUE_UNIT + i[:, None] * (grad_row * VALUE_UNIT)
    value += b * value_step * VALUE_UNIT + at[:, None] * (value_row * VALUE_UNIT)
    slope = product(
        grad, value, values_u * VALUE_UNIT, row_inside, inside, ROWS, COLUMNS, DEPTH, PRECISION
    )
    slope += tl.load(row_slope + row, mask=row_inside, other=0.0)[:, None]
    slope *= share.to(tl.float32) * (of_query * scale)[:, None] * of_key[None, :]
    tl.store(e + to, slope, mask=there)


@triton.jit(do_not_specialize_on_alignment=["counts"])
def _transposed_times_rows(
    p, right, order, counts, out,
    first, rows, keys, width_u, right_step, right_row, pitch_u,
    UNIT: tl.constexpr, PITCH_UNIT: tl.constexpr, SELECT: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[j] (+)= sum_i p[i, j] right[first + i], for the selected j."""
    width, pitch = width_u * UNIT, pitch_u * PITCH_UNIT
    row_blocks, column_blocks = tl.cdiv(keys, ROWS), tl.cdiv(width, COLUMNS)
    pid = tl.program_id(0)
    j = pid // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    d = pid % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    b = (pid // column_blocks // row_blocks).to(tl.int64)
    count = keys
    if SELECT:
        count = tl.load(counts + b)
    if pid // column_blocks % row_blocks * ROWS >= count:
        return
    inside = j < count
    p += b * rows * pitch + j[None, :]
    right += b * right_step * UNIT + d[None, :]
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, rows, DEPTH):
        local = start + tl.arange(0, DEPTH)
        there = (local < rows)[:, None]
        # Not `inside`, as in _times_rows; rows of the result behind the last key are not stored.
        x = tl.load(p + local[:, None] * pitch, mask=there & (j < pitch)[None, :], other=0.0)
        y = tl.load(
            right + (first + local)[:, None] * (right_row * UNIT),
            mask=there & (d < width)[None, :],
            other=0.0,
        )
        result = tl.dot(tl.trans(x), y.to(x.dtype), result, input_precision=PRECISION)
    at = j
    if SELECT:
        at = tl.load(order + b * keys + j, mask=inside, other=0)
    out += (b * keys + at[:, None]) * width + d[None, :]
    mask = inside[:, None] & (d < width)[None, :]
    if ADD:
        result += tl.load(out, mask=mask, other=0.0)
    tl.store(out, result, mask=mask)


@triton.jit
def _across(
    slopes, rows, inverse, out,
    positions, channels, step, row_stride, out_b, out_c, out_p, eps,
    NORMALIZE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = a - x^ (x^ . a) where the norm, not eps, divides; else a."""
    blocks = tl.cdiv(positions, BLOCK_P)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (n < positions)[:, None]
    slopes += (b * positions + n)[:, None] * channels
    rows += b * step + n[:, None] * row_stride
    factor = tl.zeros([BLOCK_P], tl.float32)
    if NORMALIZE:
        along = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)[None, :]
            a = tl.load(slopes + c, mask=inside & (c < channels), other=0.0)
            x = tl.load(rows + c, mask=inside & (c < channels), other=0.0).to(tl.float32)
            along += a * x
        i = tl.load(inverse + b * positions + n, mask=n < positions, other=0.0)
        factor = tl.where(i < 1.0 / eps, i * i * tl.sum(along, axis=1), 0.0)
    out += b * out_b + n[:, None] * out_p
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[None, :]
        a = tl.load(slopes + c, mask=inside & (c < channels), other=0.0)
        if NORMALIZE:
            x = tl.load(rows + c, mask=inside & (c < channels), other=0.0).to(tl.float32)
            a -= x * factor[:, None]
        tl.store(out + c * out_c, a, mask=inside & (c < channels))


def _write(slopes: Tensor, rows: Rows, out: Tensor, *, normalize: bool, eps: float) -> None:
    """Into `out` (B, C, N), any strides: the gradient of vectors from that of unit vectors."""
    batch, positions, channels = slopes.shape
    block_p = 16 if interpreted() else 32
    block_c = 16 if interpreted() else min(64, power_of_two(channels, 16))
    of_item, of_row, _ = rows.tensor.stride()
    _across[(batch * cdiv(positions, block_p),)](
        *(slopes, rows.tensor, rows.inverse, out),
        *(positions, channels, of_item, of_row, *out.stride(), eps),
        NORMALIZE=normalize,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=4,
    )


def backward(
    grad: Tensor,  # (B, D, N)
    grad_totals: Tensor | None,  # (B, N); None: softmax
    query: Tensor,  # (B, C, N)
    key: Tensor,  # (B, C, M)
    value: Tensor,  # (B, D, M)
    weights: Tensor | None,  # (B, M)
    scale: float,
    normalize: bool,
    eps: float,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
) -> None:
    """Into those of the gradients that are given, shaped like their tensors, any strides."""
    matching = Matching.of(query, key, value, weights, scale, normalize, eps)
    batch, values, queries = grad.shape
    of_rows = new(query, 3, batch, queries)
    if grad_totals is None:
        out = new(query, batch, queries, values).transpose(1, 2)
        totals, of_rows[0] = match(matching, out, divide=True)
        of_rows[1] = torch.where(totals == 0, 0.0, 1 / totals)
        of_rows[2] = -(grad * out).sum(1)
    else:
        # No t: what float16 cannot hold is in float32 here.
        of_rows[0], of_rows[1], of_rows[2] = 0.0, 1.0, grad_totals
    _Blocks(matching, grad, of_rows, eps).run(grad_query, grad_key, grad_value)


class _Blocks:
    """The products of `backward`, block by block."""

    def __init__(self, matching: Matching, grad: Tensor, of_rows: Tensor, eps: float) -> None:
        dtype = matching.query.tensor.dtype
        self.matching, self.of_rows, self.eps = matching, of_rows, eps
        self.dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        self.dot = precision(dtype)
        # As rows; in float16 the gradient of a float32 result would leave the range.
        self.grad = Rows.of(grad, dtype=self.dtype)
        self.p, self.pitch = workspace(matching, self.dtype)
        self.e = torch.empty_like(self.p)

    def run(
        self, grad_query: Tensor | None, grad_key: Tensor | None, grad_value: Tensor | None
    ) -> None:
        matching = self.matching
        query, key, value = matching.query, matching.key, matching.value
        assert value is not None
        batch, queries, keys = len(query.tensor), query.positions, key.positions
        like, channels, values = query.tensor, query.tensor.shape[2], value.tensor.shape[2]
        for_query = None if grad_query is None else new(like, batch, queries, channels)
        # Keys that are not selected have no gradient.
        for_key = None if grad_key is None else new(like, batch, keys, channels).zero_()
        for_value = None if grad_value is None else new(like, batch, keys, values).zero_()
        for block in blocks_of(batch, queries, self.pitch):
            items = slice(block.start, block.stop)
            of_items = matching.items(block.start, block.stop)
            grad = self.grad.items(block.start, block.stop)
            self._slopes(of_items, grad, block)
            if for_query is not None:
                out = for_query[items].transpose(1, 2)
                times_rows(
                    of_items, self.e, self.pitch, of_items.key, out, block.first, block.rows,
                    self.dot,
                )  # fmt: skip
            if for_key is not None:
                self._transposed(self.e, of_items, of_items.query, for_key[items], block)
            if for_value is not None:
                self._transposed(self.p, of_items, grad, for_value[items], block)
        normalize = matching.normalize
        if for_query is not None and grad_query is not None:
            _write(for_query, query, grad_query, normalize=normalize, eps=self.eps)
        if for_key is not None and grad_key is not None:
            _write(for_key, key, grad_key, normalize=normalize, eps=self.eps)
        if for_value is not None and grad_value is not None:
            grad_value.copy_(for_value.transpose(1, 2))

    def _slopes(self, matching: Matching, grad: Rows, block: Block) -> None:
        query, key, value = matching.query, matching.key, matching.value
        assert value is not None
        configs = SLOPES_FLOAT32 if self.dtype == torch.float32 else SLOPES
        config = choose("dense_match_slopes", configs)
        common, of_values = math.gcd(query.unit, key.unit), math.gcd(value.unit, grad.unit)
        batch, queries, channels = query.tensor.shape
        tiles = cdiv(block.rows, config.rows) * cdiv(key.positions, config.columns)
        of_rows = self.of_rows[:, block.start : block.stop]
        _slopes[(batch * tiles,)](
            *(query.tensor, key.tensor, value.tensor, grad.tensor, query.inverse, key.inverse),
            *(*matching.selected, *of_rows, self.p, self.e),
            *(block.first, block.rows, queries, key.positions, channels // common),
            value.tensor.shape[2] // of_values,
            *(*query.strides_in(common), *key.strides_in(common)),
            *(*value.strides_in(of_values), *grad.strides_in(of_values)),
            *(self.pitch // 16, matching.factor, matching.scale),
            UNIT=common,
            VALUE_UNIT=of_values,
            PITCH_UNIT=16,
            SELECT=matching.selection is not None,
            NORMALIZE=matching.normalize,
            PRECISION=self.dot,
            ROWS=config.rows,
            COLUMNS=config.columns,
            DEPTH=config.depth,
            **config.options(),
        )

    def _transposed(
        self, p: Tensor, matching: Matching, right: Rows, out: Tensor, block: Block
    ) -> None:
        config = config_for("dense_match_transposed", self.dtype)
        batch, keys, width = out.shape
        order, _, counts = matching.selected
        tiles = cdiv(keys, config.rows) * cdiv(width, config.columns)
        _transposed_times_rows[(batch * tiles,)](
            *(p, right.tensor, order, counts, out),
            *(block.first, block.rows, keys, width // right.unit, *right.strides),
            self.pitch // 16,
            UNIT=right.unit,
            PITCH_UNIT=16,
            SELECT=matching.selection is not None,
            ADD=block.first > 0,
            PRECISION=self.dot,
            ROWS=config.rows,
            COLUMNS=config.columns,
            DEPTH=config.depth,
            **config.options(),
        )
