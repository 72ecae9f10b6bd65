"""The products of center_pivot_conv4d: of many channels by whole taps, of few one by one.

Many channels (`_convolve`): a program takes neighbouring query positions at one support position.
All of its rows then see the same taps over the support, so that those beside the grid are not
computed (five of nine where two by two positions are left), and a step is one tap's channels, read
16 bytes at a time; of 16 channels several taps', since a step of 16 takes hardly less time than one
of 64.

Few channels (`_gather`): a level's own correlations, three to six of them. A step takes several
taps, and the channels of a tap share its place and its mask. They are read where the correlation
wrote them, plane by plane: interleaving them first would move 100 MB at 400 px. Where it can, the
operation hands these to csrc/cuda/center_pivot_conv4d.cu.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Config, cdiv, choose, power_of_two, precision

CONFIGS = [
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 64, 64, warps=8, stages=3),
    Config(128, 64, 64, warps=4, stages=3),
    Config(64, 128, 64, warps=4, stages=4),
]
CONFIGS_FLOAT32 = [
    Config(64, 64, 32, warps=8, stages=3),
    Config(128, 64, 32, warps=8, stages=2),
    Config(64, 128, 32, warps=8, stages=2),
]
CONFIGS_GATHERED = [
    Config(128, 16, 32, warps=4, stages=2),
    Config(128, 16, 64, warps=4, stages=2),
    Config(256, 16, 32, warps=8, stages=2),
]
# Four warps would spill.
CONFIGS_GATHERED_FLOAT32 = [
    Config(128, 16, 32, warps=8, stages=2),
    Config(64, 16, 32, warps=4, stages=2),
]

# Channels that a step of `_convolve` takes at least; others are gathered.
LEAST_DEPTH = 16


@triton.jit
def _convolve(
    x, query_weights, support_weights, query_bias, support_bias, out, means, deviations,
    queries, query_height, query_width, support_height, support_width, out_supports, out_width,
    blocks,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    STATISTICS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % blocks
    support = tl.program_id(0) // blocks
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.program_id(2).to(tl.int64)
    query = block * ROWS + tl.arange(0, ROWS)
    inside, used = query < queries, column < OUTPUTS
    query_row, query_column = query // query_width, query % query_width
    support_row, support_column = support // out_width * STRIDE, support % out_width * STRIDE
    support_positions = support_height * support_width

    REACH: tl.constexpr = KERNEL // 2
    # Steps of a tap, or taps of a step.
    STEPS: tl.constexpr = (INPUTS + DEPTH - 1) // DEPTH
    TAPS: tl.constexpr = (DEPTH + INPUTS - 1) // INPUTS
    depth = tl.arange(0, DEPTH)
    of_step = depth // INPUTS
    # Within an item, which has fewer than 2^31 elements, offsets are 32 bits wide.
    x += b * queries * support_positions * INPUTS
    rows = x + query[:, None] * (support_positions * INPUTS) + depth[None, :]
    weight = depth[:, None] * OUTPUTS + column[None, :]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)

    top, left = tl.maximum(support_row - REACH, 0), tl.maximum(support_column - REACH, 0)
    height = tl.minimum(support_row + REACH + 1, support_height) - top
    width = tl.minimum(support_column + REACH + 1, support_width) - left
    runs = tl.cdiv(width, TAPS)
    for step in tl.range(0, height * runs * STEPS):
        run, channel = step // STEPS, step % STEPS * DEPTH
        across = run % runs * TAPS
        y, z = top + run // runs, left + across
        here, of_row = inside[:, None], used[None, :]
        if TAPS > 1:  # the channels of neighbouring taps of a row follow each other
            here = here & (of_step < width - across)[None, :]
            of_row = of_row & (of_step < width - across)[:, None]
        a = tl.load(rows + ((y * support_width + z) * INPUTS + channel), mask=here, other=0.0)
        window = (y - support_row + REACH) * KERNEL + z - support_column + REACH
        w = tl.load(
            support_weights + (window * INPUTS + channel) * OUTPUTS + weight, mask=of_row, other=0.0
        )
        sums = tl.dot(a, w, sums, input_precision=PRECISION)

    middle = (support_row * support_width + support_column) * INPUTS
    if TAPS == 1:
        for step in tl.range(0, KERNEL * KERNEL * STEPS):
            tap, channel = step // STEPS, step % STEPS * DEPTH
            down, right = tap // KERNEL - REACH, tap % KERNEL - REACH
            y, z = query_row + down, query_column + right
            there = inside & (y >= 0) & (y < query_height) & (z >= 0) & (z < query_width)
            away = (down * query_width + right) * support_positions * INPUTS
            a = tl.load(rows + (away + middle + channel), mask=there[:, None], other=0.0)
            w = tl.load(
                query_weights + (tap * INPUTS + channel) * OUTPUTS + weight,
                mask=used[None, :],
                other=0.0,
            )
            sums = tl.dot(a, w, sums, input_precision=PRECISION)
    else:
        starts = x + query * (support_positions * INPUTS) + middle
        for first in tl.range(0, KERNEL * KERNEL, TAPS):
            tap = first + of_step
            down, right = tap // KERNEL - REACH, tap % KERNEL - REACH
            y, z = query_row[:, None] + down[None, :], query_column[:, None] + right[None, :]
            there = (y >= 0) & (y < query_height) & (z >= 0) & (z < query_width)
            there = there & inside[:, None] & (tap < KERNEL * KERNEL)[None, :]
            away = (down * query_width + right) * support_positions * INPUTS + depth % INPUTS
            a = tl.load(starts[:, None] + away[None, :], mask=there, other=0.0)
            w = tl.load(
                query_weights + first * INPUTS * OUTPUTS + weight,
                mask=(tap < KERNEL * KERNEL)[:, None] & used[None, :],
                other=0.0,
            )
            sums = tl.dot(a, w, sums, input_precision=PRECISION)

    bias = tl.load(query_bias + column, mask=used, other=0.0).to(tl.float32)
    bias += tl.load(support_bias + column, mask=used, other=0.0).to(tl.float32)
    sums += bias[None, :]
    to = (query * out_supports + support)[:, None] * OUTPUTS + column[None, :]
    out += b * queries * out_supports * OUTPUTS
    tl.store(out + to, sums, mask=inside[:, None] & used[None, :])
    if STATISTICS:
        at = (b * tl.num_programs(0) + tl.program_id(0)) * OUTPUTS + column
        count = tl.minimum(ROWS, queries - block * ROWS)
        _keep_statistics(sums, inside, count, means + at, deviations + at, used)


@triton.jit
def _keep_statistics(sums, inside, count, means, deviations, used):
    mean = tl.sum(tl.where(inside[:, None], sums, 0.0), axis=0) / count
    apart = tl.where(inside[:, None], sums - mean[None, :], 0.0)
    tl.store(means, mean, mask=used)
    tl.store(deviations, tl.sum(apart * apart, axis=0), mask=used)


@triton.jit
def _gather(
    x, query_weights, support_weights, query_bias, support_bias, out, means, deviations,
    count, query_height, query_width, support_height, support_width, out_height, out_width,
    of_item, of_position, of_channel,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    STATISTICS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b = tl.program_id(2).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    inside, used = row < count, column < OUTPUTS
    support_column = row % out_width * STRIDE
    support_row = row // out_width % out_height * STRIDE
    pair = row // out_width // out_height
    query_column, query_row = pair % query_width, pair // query_width
    support_positions = support_height * support_width
    x += b * of_item
    start = pair * support_positions + support_row * support_width + support_column

    TAPS: tl.constexpr = KERNEL * KERNEL
    TOGETHER: tl.constexpr = DEPTH // WIDE
    channel = tl.arange(0, WIDE)
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in tl.range(0, 2 * TAPS, TOGETHER):
        tap = first + tl.arange(0, TOGETHER)
        over_query = tap >= TAPS
        window = tap % TAPS
        down, right = window // KERNEL - KERNEL // 2, window % KERNEL - KERNEL // 2
        of_query = (down * query_width + right) * support_positions
        step = tl.where(over_query, of_query, down * support_width + right)
        which = over_query[None, :]
        y = tl.where(which, query_row[:, None], support_row[:, None]) + down[None, :]
        z = tl.where(which, query_column[:, None], support_column[:, None]) + right[None, :]
        there = (y >= 0) & (y < tl.where(which, query_height, support_height))
        there = there & (z >= 0) & (z < tl.where(which, query_width, support_width))
        there = there & inside[:, None] & (tap < 2 * TAPS)[None, :]
        offsets = (start[:, None] + step[None, :]) * of_position
        a = tl.load(
            x + offsets[:, :, None] + (channel * of_channel)[None, None, :],
            mask=there[:, :, None] & (channel < INPUTS)[None, None, :],
            other=0.0,
        )
        of_tap, of_depth = first + depth // WIDE, depth % WIDE
        at = of_tap % TAPS * INPUTS + of_depth
        rows_of_w = tl.where(
            of_tap < TAPS, support_weights + at * OUTPUTS, query_weights + at * OUTPUTS
        )
        w = tl.load(
            rows_of_w[:, None] + column[None, :],
            mask=((of_tap < 2 * TAPS) & (of_depth < INPUTS))[:, None] & used[None, :],
            other=0.0,
        )
        sums = tl.dot(tl.reshape(a, [ROWS, DEPTH]), w, sums, input_precision=PRECISION)

    bias = tl.load(query_bias + column, mask=used, other=0.0).to(tl.float32)
    bias += tl.load(support_bias + column, mask=used, other=0.0).to(tl.float32)
    sums += bias[None, :]
    to = row[:, None] * OUTPUTS + column[None, :]
    tl.store(out + b * count * OUTPUTS + to, sums, mask=inside[:, None] & used[None, :])
    if STATISTICS:
        at = (b * tl.num_programs(0) + block) * OUTPUTS + column
        rows = tl.minimum(ROWS, count - block * ROWS)
        _keep_statistics(sums, inside, rows, means + at, deviations + at, used)


@dataclass(frozen=True)
class Blocks:
    """How the rows of one item are cut into blocks, of which each gives its statistics.

    Attributes:
        rows: of a block.
        part_rows: rows that follow each other in such blocks, the last shorter.
        part_blocks: blocks of such a part.
        count: blocks of all parts.
    """

    rows: int
    part_rows: int
    part_blocks: int
    count: int

    @classmethod
    def of_queries(cls, out: Tensor, together: int) -> Blocks:
        """A block for so many query positions."""
        _, ha, wa, hc, wc, _ = out.shape
        count = cdiv(ha * wa, together)
        return cls(together * hc * wc, ha * wa * hc * wc, count, count)


@dataclass(frozen=True)
class Programs(Blocks):
    """Blocks that are a program of Triton's each.

    Attributes:
        config: block sizes.
        gathered: whether channels are few.
    """

    config: Config
    gathered: bool

    @classmethod
    def of(cls, x: Tensor, out: Tensor) -> Programs:
        """For the input and the output of `forward`."""
        _, ha, wa, hc, wc, _ = out.shape
        gathered, wide = x.shape[-1] % LEAST_DEPTH != 0, x.itemsize == 4
        if gathered:
            configs = CONFIGS_GATHERED_FLOAT32 if wide else CONFIGS_GATHERED
            config = choose("center_pivot_conv4d_gathered", configs)
            parts, part_rows = 1, ha * wa * hc * wc
        else:
            config = choose("center_pivot_conv4d", CONFIGS_FLOAT32 if wide else CONFIGS)
            parts, part_rows = hc * wc, ha * wa
        part_blocks = cdiv(part_rows, config.rows)
        count = parts * part_blocks
        return cls(config.rows, part_rows, part_blocks, count, config, gathered)


def _by_tap(weight: Tensor) -> Tensor:
    """(k k, I, O), a view."""
    return weight.flatten(2).permute(2, 1, 0)


def convolve(
    programs: Programs,
    x: Tensor,
    query_weight: Tensor,
    support_weight: Tensor,
    query_bias: Tensor,
    support_bias: Tensor,
    stride: int,
    out: Tensor,
    statistics: Tensor,  # 2 times (B, programs.count, O), or of any size where not kept
    *,
    keep: bool,
) -> None:
    """Into `out` and, if `keep`, means and squared deviations of every block's rows."""
    batch, *grids, inputs = x.shape
    outputs, kernel = query_weight.shape[0], query_weight.shape[-1]
    config = programs.config
    columns = min(config.columns, power_of_two(outputs, 16))
    by_tap = [_by_tap(weight).contiguous() for weight in (query_weight, support_weight)]
    grid = programs.count, cdiv(outputs, columns), batch
    constants = {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "KERNEL": kernel,
        "STRIDE": stride,
        "STATISTICS": keep,
        "PRECISION": precision(x.dtype),
        "ROWS": config.rows,
        "COLUMNS": columns,
    }
    if programs.gathered:
        wide = power_of_two(inputs)
        _gather[grid](
            *(x, *by_tap, query_bias, support_bias, out, *statistics),
            *(programs.part_rows, *grids, *out.shape[3:5]),
            *(x.stride(0) if batch > 1 else 0, x.stride(4), x.stride(5)),
            **constants,
            DEPTH=max(config.depth, wide),
            WIDE=wide,
            **config.options(),
        )
        return
    depth = min(config.depth, inputs & -inputs)
    if depth == inputs:
        depth = config.depth  # of several taps
    # Shallower steps take as many bytes ahead.
    stages = min(6, config.stages * config.depth // depth)
    _convolve[grid](
        *(x, *by_tap, query_bias, support_bias, out, *statistics, programs.part_rows, *grids),
        *(out.shape[3] * out.shape[4], out.shape[4], programs.part_blocks),
        **constants,
        DEPTH=depth,
        num_warps=config.warps,
        num_stages=stages,
    )
