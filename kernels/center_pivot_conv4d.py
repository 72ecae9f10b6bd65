"""center_pivot_conv4d: both of HSNet's 2D convolutions as one implicit matrix product.

    y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + bias

A row of the product is a pair of positions (a, b), and its operand the windows' taps times
channels, gathered where they lie (_center_pivot_products.py): nothing is permuted or padded. Both
pivots add into the same sums. With a norm, each program also gives the mean and the squared
deviations of its rows, which a second kernel puts together by group, and a third applies with the
ReLU.

HSNet's learner at 400 px (ResNet-50): 26 GFLOP, 33 us at 790 TFLOP/s in 16 bits, and about 100 MB,
23 us at 4.3 TB/s.
"""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._center_pivot_products import Blocks, Programs, convolve
from fastfss.kernels._launch import cdiv, new, power_of_two

# Means and deviations that a step of the statistics takes.
STATISTICS = 4096


@triton.jit
def _statistics(
    means, deviations, weight, bias, scales, shifts, count, blocks, part_rows, part_blocks, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One group of one item: Chan's rule, of blocks of ROWS values a channel.

    Blocks come in parts of `part_rows` values, of which the last is shorter.
    """
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
        rows = tl.minimum(ROWS, part_rows - block % part_blocks * ROWS).to(tl.float32)[:, None]
        total += tl.where(here, tl.load(means + at, mask=here, other=0.0) * rows, 0.0)
    # In two steps, which the interpreter and the compiler both add in the same order.
    mean = tl.sum(tl.sum(total, axis=0), axis=0) / (count.to(tl.float32) * SIZE)
    spread = tl.zeros([BLOCKS, WIDTH], tl.float32)
    for start in tl.range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        here = (block < blocks)[:, None] & used[None, :]
        at = (b * blocks + block)[:, None] * CHANNELS + channel[None, :]
        rows = tl.minimum(ROWS, part_rows - block % part_blocks * ROWS).to(tl.float32)[:, None]
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
    x: Tensor,  # (B, ha, wa, hb, wb, I), channels last; few channels also in planes of one each
    query_weight: Tensor,  # (O, I, k, k)
    support_weight: Tensor,  # (O, I, k, k)
    query_bias: Tensor,  # (O,)
    support_bias: Tensor,  # (O,)
    stride: int,
    out: Tensor,  # (B, ha, wa, hb / stride, wb / stride, O), contiguous
    norm: tuple[Tensor, Tensor, int, float] | None = None,
    product: tuple[Callable[[Tensor, Tensor | None], None], int] | None = None,
) -> None:
    """Into `out`; with `norm`, its weight, bias, groups and eps, normalised and through a ReLU.

    `product` takes the place of Triton's: it fills `out` and, given a tensor (2, B, blocks, O),
    each block's means and squared deviations; and of how many query positions its blocks are.
    """
    batch, outputs = len(x), query_weight.shape[0]
    elements = out[0].numel()
    blocks = Programs.of(x, out) if product is None else Blocks.of_queries(out, product[1])
    # Means, and squared deviations from them.
    statistics = new(x, *(2, batch, blocks.count, outputs) if norm is not None else (2, 1))
    if isinstance(blocks, Programs):
        weights = query_weight, support_weight, query_bias, support_bias
        convolve(blocks, x, *weights, stride, out, statistics, keep=norm is not None)
    elif product is not None:
        product[0](out, statistics if norm is not None else None)
    if norm is None:
        return
    weight, shift, groups, eps = norm
    scales = new(x, 2, batch, outputs)
    width = power_of_two(outputs // groups)
    _statistics[(groups, batch)](
        *(*statistics, weight, shift, *scales),
        *(elements // outputs, blocks.count, blocks.part_rows, blocks.part_blocks, eps),
        CHANNELS=outputs,
        GROUPS=groups,
        ROWS=blocks.rows,
        WIDTH=width,
        BLOCKS=min(max(1, STATISTICS // width), power_of_two(blocks.count)),
        num_warps=8,
    )
    _apply[(cdiv(elements, 2048), batch)](
        *(out, *scales, elements), CHANNELS=outputs, BLOCK=2048, num_warps=8
    )
