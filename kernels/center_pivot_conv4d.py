"""center_pivot_conv4d: both of HSNet's 2D convolutions as one implicit matrix product.

    y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + bias

A row of the product is a pair of positions (a, b), and its operand the 2 k^2 windows' taps times
channels, gathered where they lie: nothing is permuted or padded. Both pivots add into the same
sums. With a norm, each program also gives the mean and the squared deviations of its rows, which a
second kernel puts together by group, and a third applies with the ReLU.

HSNet's learner at 400 px (ResNet-50): 26 GFLOP, 33 us at 790 TFLOP/s in 16 bits, and about 100 MB,
23 us at 4.3 TB/s.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Config, cdiv, choose, new, power_of_two, precision

# 128 columns would read the rows of the widest layers once instead of twice, at depth 64 with 255
# registers and 80 spilled bytes.
CONFIGS = [
    Config(128, 64, 64, warps=8, stages=3),
    Config(128, 128, 32, warps=8, stages=4),
    Config(64, 128, 64, warps=8, stages=3),
    Config(64, 128, 32, warps=4, stages=4),
]
CONFIGS_FLOAT32 = [
    Config(64, 64, 32, warps=8, stages=3),
    Config(128, 64, 32, warps=8, stages=2),
    Config(64, 128, 32, warps=8, stages=2),
]
# A level's own correlations, three to six channels, which are gathered one by one.
CONFIGS_GATHERED = [
    Config(128, 16, 32, warps=8, stages=2),
    Config(64, 16, 32, warps=4, stages=2),
    Config(128, 16, 64, warps=8, stages=2),
]


@triton.jit
def _convolve(
    x, weights, bias, out, means, deviations,
    count, query_height, query_width, support_height, support_width, out_height, out_width, blocks,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    STATISTICS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.program_id(2).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < count
    support_column = row % out_width * STRIDE
    support_row = row // out_width % out_height * STRIDE
    pair = row // out_width // out_height
    query_column, query_row = pair % query_width, pair // query_width
    support_positions = support_height * support_width
    # Within an item, which has fewer than 2^31 elements, offsets are 32 bits wide.
    x += b * query_height * query_width * support_positions * INPUTS
    start = pair * support_positions + support_row * support_width + support_column

    TAPS: tl.constexpr = KERNEL * KERNEL
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for depth in tl.range(0, 2 * TAPS * INPUTS, DEPTH):
        k = depth + tl.arange(0, DEPTH)
        if INPUTS % DEPTH == 0:  # one tap for all of k, and neighbouring channels
            tap = depth // INPUTS
            channel = depth % INPUTS + tl.arange(0, DEPTH)
        else:
            tap = k // INPUTS
            channel = k % INPUTS
        over_query = tap >= TAPS
        window = tap % TAPS
        down, right = window // KERNEL - KERNEL // 2, window % KERNEL - KERNEL // 2
        of_query = (down * query_width + right) * support_positions
        step = tl.where(over_query, of_query, down * support_width + right)
        if INPUTS % DEPTH == 0:
            y = tl.where(over_query, query_row, support_row) + down
            z = tl.where(over_query, query_column, support_column) + right
            here = inside & (y >= 0) & (y < tl.where(over_query, query_height, support_height))
            here = here & (z >= 0) & (z < tl.where(over_query, query_width, support_width))
            offsets = ((start + step) * INPUTS)[:, None] + channel[None, :]
            a = tl.load(x + offsets, mask=here[:, None], other=0.0)
        else:
            which = over_query[None, :]
            y = tl.where(which, query_row[:, None], support_row[:, None]) + down[None, :]
            z = tl.where(which, query_column[:, None], support_column[:, None]) + right[None, :]
            here = (y >= 0) & (y < tl.where(which, query_height, support_height))
            here = here & (z >= 0) & (z < tl.where(which, query_width, support_width))
            here = here & inside[:, None] & (k < 2 * TAPS * INPUTS)[None, :]
            offsets = (start * INPUTS)[:, None] + (step * INPUTS + channel)[None, :]
            a = tl.load(x + offsets, mask=here, other=0.0)
        w = tl.load(
            weights + k[:, None] * OUTPUTS + column[None, :],
            mask=(k < 2 * TAPS * INPUTS)[:, None] & (column < OUTPUTS)[None, :],
            other=0.0,
        )
        sums = tl.dot(a, w, sums, input_precision=PRECISION)

    used = column < OUTPUTS
    sums += tl.load(bias + column, mask=used, other=0.0).to(tl.float32)[None, :]
    to = row[:, None] * OUTPUTS + column[None, :]
    tl.store(out + b * count * OUTPUTS + to, sums, mask=inside[:, None] & used[None, :])
    if STATISTICS:
        rows = tl.minimum(ROWS, count - block * ROWS)
        mean = tl.sum(tl.where(inside[:, None], sums, 0.0), axis=0) / rows
        apart = tl.where(inside[:, None], sums - mean[None, :], 0.0)
        at = (b * blocks + block) * OUTPUTS + column
        tl.store(means + at, mean, mask=used)
        tl.store(deviations + at, tl.sum(apart * apart, axis=0), mask=used)


@triton.jit
def _statistics(
    means, deviations, weight, bias, scales, shifts, count, blocks, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One group of one item: Chan's rule, of blocks of ROWS values a channel, the last shorter."""
    group = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    SIZE: tl.constexpr = CHANNELS // GROUPS
    lane = tl.arange(0, WIDTH)
    channel = group * SIZE + lane
    used = lane < SIZE
    total = tl.zeros([BLOCKS, WIDTH], tl.float32)
    for start in tl.range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        here = (block < blocks)[:, None] & used[None, :]
        at = (b * blocks + block)[:, None] * CHANNELS + channel[None, :]
        rows = tl.minimum(ROWS, count - block * ROWS).to(tl.float32)[:, None]
        total += tl.where(here, tl.load(means + at, mask=here, other=0.0) * rows, 0.0)
    # In two steps, which the interpreter and the compiler both add in the same order.
    mean = tl.sum(tl.sum(total, axis=0), axis=0) / (count.to(tl.float32) * SIZE)
    spread = tl.zeros([BLOCKS, WIDTH], tl.float32)
    for start in tl.range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        here = (block < blocks)[:, None] & used[None, :]
        at = (b * blocks + block)[:, None] * CHANNELS + channel[None, :]
        rows = tl.minimum(ROWS, count - block * ROWS).to(tl.float32)[:, None]
        apart = tl.load(means + at, mask=here, other=0.0) - mean
        squares = tl.load(deviations + at, mask=here, other=0.0) + rows * apart * apart
        spread += tl.where(here, squares, 0.0)
    variance = tl.sum(tl.sum(spread, axis=0), axis=0) / (count.to(tl.float32) * SIZE)
    scale = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    scale = scale / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, mask=used, other=0.0).to(tl.float32) - mean * scale
    tl.store(scales + b * CHANNELS + channel, scale, mask=used)
    tl.store(shifts + b * CHANNELS + channel, shift, mask=used)


@triton.jit
def _apply(
    maps, scales, shifts, elements,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norm and the ReLU, in place."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = at % CHANNELS
    here = at < elements
    x = tl.load(maps + b * elements + at, mask=here, other=0.0).to(tl.float32)
    x = x * tl.load(scales + b * CHANNELS + channel) + tl.load(shifts + b * CHANNELS + channel)
    x = tl.where(x < 0.0, 0.0, x)  # keeps NaN
    tl.store(maps + b * elements + at, x, mask=here)


def forward(
    x: Tensor,  # (B, ha, wa, hb, wb, I), contiguous
    query_weight: Tensor,  # (O, I, k, k)
    support_weight: Tensor,  # (O, I, k, k)
    bias: Tensor,  # (O,)
    stride: int,
    out: Tensor,  # (B, ha, wa, hb / stride, wb / stride, O), contiguous
    norm: tuple[Tensor, Tensor, int, float] | None = None,
) -> None:
    """Into `out`; with `norm`, its weight, bias, groups and eps, normalised and through a ReLU."""
    batch, *grids, inputs = x.shape
    outputs, kernel = query_weight.shape[0], query_weight.shape[-1]
    # As the product reads them: (2 k k I, O), the support's taps first.
    weights = x.new_empty(2, kernel * kernel, inputs, outputs)
    for to, weight in zip(weights, (support_weight, query_weight), strict=True):
        to.copy_(weight.flatten(2).permute(2, 1, 0))
    if inputs % 32:
        config = choose("center_pivot_conv4d_gathered", CONFIGS_GATHERED)
    else:
        config = choose("center_pivot_conv4d", CONFIGS_FLOAT32 if x.itemsize == 4 else CONFIGS)
    count = out[0].numel() // outputs
    blocks = cdiv(count, config.rows)
    columns = min(config.columns, power_of_two(outputs, 16))
    statistics = new(x, *(2, batch, blocks, outputs) if norm is not None else (2, 1))
    _convolve[(blocks, cdiv(outputs, columns), batch)](
        *(x, weights, bias, out, *statistics, count, *grids, out.shape[3], out.shape[4], blocks),
        INPUTS=inputs,
        OUTPUTS=outputs,
        KERNEL=kernel,
        STRIDE=stride,
        STATISTICS=norm is not None,
        PRECISION=precision(x.dtype),
        ROWS=config.rows,
        COLUMNS=columns,
        DEPTH=config.depth,
        **config.options(),
    )
    if norm is None:
        return
    weight, shift, groups, eps = norm
    scales = new(x, 2, batch, outputs)
    _statistics[(groups, batch)](
        *(*statistics, weight, shift, *scales, count, blocks, eps),
        CHANNELS=outputs,
        GROUPS=groups,
        ROWS=config.rows,
        WIDTH=power_of_two(outputs // groups),
        BLOCKS=min(64, power_of_two(blocks)),
    )
    elements = count * outputs
    _apply[(cdiv(elements, 2048), batch)](
        *(out, *scales, elements), CHANNELS=outputs, BLOCK=2048, num_warps=8
    )
