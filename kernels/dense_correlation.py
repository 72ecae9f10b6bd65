"""dense_correlation: cosines of every query with every support position, in several layers.

    corr[b, l, i, j] = max(0, q_i . s_j / ((|q_i| + eps) (|s_j| + eps)))

One launch makes tiles of up to eight layers: a layer of 13 x 13 positions alone is four tiles, not
enough for a GPU. Products of raw vectors go to the tensor cores; norms and clamp are applied to the
sums, which are written straight into the stacked result. Low-precision operands are never divided
by their norms and rounded again.

HSNet at 400 px (ResNet-50, 13 layers): 30.7 GFLOP, 39 us at 790 TFLOP/s in 16 bits, and 55 MB
written, 13 us at 4.3 TB/s: bound by the products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Config, cdiv, choose, precision, unit
from fastfss.kernels._rows import Rows

# Layers of a launch: their addresses are arguments of the kernel.
LAYERS = 8

CONFIGS = [
    Config(128, 128, 64, warps=8, stages=3),
    Config(128, 128, 64, warps=4, stages=4),
    Config(128, 256, 64, warps=8, stages=3),
    Config(64, 128, 64, warps=4, stages=4),
]
# float32 takes twice the shared memory an element and splits its operands in registers.
CONFIGS_FLOAT32 = [
    Config(128, 64, 32, warps=8, stages=3),
    Config(128, 128, 32, warps=8, stages=3),  # spills on sm_80
    Config(64, 64, 32, warps=4, stages=3),
]


@triton.jit
def _correlate(
    queries, supports, query_inverses, support_inverses, out,
    channels_u, query_steps, query_rows, support_steps, support_rows,
    query_positions, support_positions_u, out_b, out_l,
    LAYERS: tl.constexpr, UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, CLAMP: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    support_positions = support_positions_u * OUT_UNIT
    row_blocks, column_blocks = (
        tl.cdiv(query_positions, ROWS),
        tl.cdiv(support_positions, COLUMNS),
    )
    pid = tl.program_id(0)
    column = pid % column_blocks
    row = pid // column_blocks % row_blocks
    layer = pid // column_blocks // row_blocks % LAYERS
    b = (pid // column_blocks // row_blocks // LAYERS).to(tl.int64)

    # A tuple takes no index that is known only at run time.
    query, support = queries[0], supports[0]
    query_inverse, support_inverse = query_inverses[0], support_inverses[0]
    channels, query_step, query_row = channels_u[0], query_steps[0], query_rows[0]
    support_step, support_row = support_steps[0], support_rows[0]
    for at in tl.static_range(1, LAYERS):
        query = tl.where(layer == at, queries[at], query)
        support = tl.where(layer == at, supports[at], support)
        query_inverse = tl.where(layer == at, query_inverses[at], query_inverse)
        support_inverse = tl.where(layer == at, support_inverses[at], support_inverse)
        channels = tl.where(layer == at, channels_u[at], channels)
        query_step = tl.where(layer == at, query_steps[at], query_step)
        query_row = tl.where(layer == at, query_rows[at], query_row)
        support_step = tl.where(layer == at, support_steps[at], support_step)
        support_row = tl.where(layer == at, support_rows[at], support_row)

    i = row * ROWS + tl.arange(0, ROWS)
    j = column * COLUMNS + tl.arange(0, COLUMNS)
    query += b * query_step * UNIT + i[:, None] * (query_row * UNIT)
    support += b * support_step * UNIT + j[:, None] * (support_row * UNIT)
    channels *= UNIT
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, channels, DEPTH):
        c = start + tl.arange(0, DEPTH)[None, :]
        q = tl.load(query + c, mask=(i < query_positions)[:, None] & (c < channels), other=0.0)
        s = tl.load(support + c, mask=(j < support_positions)[:, None] & (c < channels), other=0.0)
        products = tl.dot(q, tl.trans(s), products, input_precision=PRECISION)

    of_query = tl.load(query_inverse + b * query_positions + i, mask=i < query_positions, other=0.0)
    of_support = tl.load(
        support_inverse + b * support_positions + j, mask=j < support_positions, other=0.0
    )
    products *= of_query[:, None] * of_support[None, :]
    if CLAMP:
        products = tl.where(products < 0.0, 0.0, products)  # keeps NaN
    to = out + b * out_b + layer.to(tl.int64) * out_l
    to += i.to(tl.int64)[:, None] * support_positions + j[None, :]
    tl.store(to, products, mask=(i < query_positions)[:, None] & (j < support_positions)[None, :])


def forward(
    queries: list[Tensor],  # L times (B, C_l, N)
    supports: list[Tensor],  # L times (B, C_l, M)
    clamp: bool,
    eps: float,
    out: Tensor,  # (B, L, N, M), contiguous
) -> None:
    """Into `out`."""
    for first in range(0, len(queries), LAYERS):
        layers = slice(first, first + LAYERS)
        rows = Rows.of_all([*queries[layers], *supports[layers]], eps=eps, add_eps=True)
        half = len(rows) // 2
        _launch(rows[:half], rows[half:], clamp, out[:, layers])


def _launch(queries: list[Rows], supports: list[Rows], clamp: bool, out: Tensor) -> None:
    batch, layers, rows, columns = out.shape
    dtype = queries[0].tensor.dtype
    is_float32 = dtype.itemsize == 4
    config = choose("dense_correlation", CONFIGS_FLOAT32 if is_float32 else CONFIGS)
    common = unit(*(one.unit for one in (*queries, *supports)))

    def strides(side: list[Rows], axis: int) -> tuple[int, ...]:
        return tuple(one.strides_in(common)[axis] for one in side)

    tiles = cdiv(rows, config.rows) * cdiv(columns, config.columns)
    _correlate[(batch * layers * tiles,)](
        *(tuple(one.tensor for one in side) for side in (queries, supports)),
        *(tuple(one.inverse for one in side) for side in (queries, supports)),
        out,
        tuple(one.tensor.shape[2] // common for one in queries),
        *(strides(queries, 0), strides(queries, 1), strides(supports, 0), strides(supports, 1)),
        *(rows, columns // unit(columns), out.stride(0), out.stride(1)),
        LAYERS=layers,
        UNIT=common,
        OUT_UNIT=unit(columns),
        CLAMP=clamp,
        PRECISION=precision(dtype),
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        **config.options(),
    )
