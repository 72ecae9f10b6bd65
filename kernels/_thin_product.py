"""Products of maps with a few vectors: the maps pass through once, bound by memory.

With maps X (B, C, N) and K vectors or maps, few beside C and N:

    sum_positions   y[b, k, c] = sum_n w[b, k, n] X[b, c, n]     also / (sum_n w[b, k, n] + eps)
    sum_channels    s[b, k, n] = sum_c v[b, k, c] X[b, c, n]     also as scaled cosines
    spread          G[b, c, n] = sum_k w[b, k, n] v[b, k, c] - r[b, n] X[b, c, n]

Both layouts of X are read 16 bytes at a time (_launch.Maps). Sums are in float32 and in one order,
so calls repeat to the bit: where one program per result would leave multiprocessors idle, the sum
is cut into parts that a second kernel adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Maps, cdiv, interpreted, new, power_of_two, precision, splits

# Vectors that one pass of the float32 units takes: each more costs as many registers as the tile.
GROUP = 4
# Vectors that one pass of the tensor cores takes.
MANY = 64


def tile(maps: Maps, elements: int, width: int) -> tuple[int, int]:
    """Channels and positions of a tile: `width` along the contiguous axis."""
    if interpreted():
        return 16, 16
    across = elements // width
    return (width, across) if maps.channels_last else (across, width)


@triton.jit
def _sum_positions(
    maps, weights, sums, totals,
    batch, channels_u, positions_u, vectors, parts, part, stride_b, stride_c, stride_p, eps,
    CU: tl.constexpr, PU: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr,
    MEAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    groups = tl.cdiv(vectors, GROUP)
    pid = tl.program_id(0)
    c = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    split = pid // channel_blocks % parts
    first = pid // channel_blocks // parts % groups * GROUP
    b = (pid // channel_blocks // parts // groups).to(tl.int64)

    maps += b * stride_b * CU * PU
    weights += (b * vectors + first) * positions
    sum_of = (tl.zeros([BLOCK_C, BLOCK_P], tl.float32),) * GROUP
    total_of = (tl.zeros([BLOCK_P], tl.float32),) * GROUP
    begin = split * part
    for start in tl.range(begin, tl.minimum(begin + part, positions), BLOCK_P, num_stages=STAGES):
        p = start + tl.arange(0, BLOCK_P)
        inside = p < positions
        x = tl.load(
            maps + c[:, None] * (stride_c * PU) + p[None, :] * (stride_p * CU),
            mask=(c < channels)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        new_sums = ()
        new_totals = ()
        for k in tl.static_range(GROUP):
            w = tl.load(weights + k * positions + p, mask=inside & (first + k < vectors), other=0.0)
            new_sums = new_sums + (sum_of[k] + x * w[None, :],)
            new_totals = new_totals + (total_of[k] + w,)
        sum_of = new_sums
        total_of = new_totals

    for k in tl.static_range(GROUP):
        if first + k < vectors:
            result = tl.sum(sum_of[k], axis=1)
            at = b * vectors + first + k
            if WHOLE:
                if MEAN:
                    result *= _inverse(tl.sum(total_of[k], axis=0) + eps)
            else:
                at += split.to(tl.int64) * batch * vectors
                tl.store(totals + at, tl.sum(total_of[k], axis=0))
            tl.store(sums + at * channels + c, result, mask=c < channels)


@triton.jit
def _inverse(x):
    return tl.where(x == 0.0, 0.0, 1.0 / tl.where(x == 0.0, 1.0, x))


@triton.jit
def _add_parts(
    sums, totals, out, parts, rows, channels, eps, MEAN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    result = tl.zeros([BLOCK_C], tl.float32)
    total = 0.0
    for split in range(parts):
        at = split * rows + row
        result += tl.load(sums + at * channels + c, mask=c < channels, other=0.0)
        total += tl.load(totals + at)
    if MEAN:
        result *= _inverse(total + eps)
    tl.store(out + row * channels + c, result, mask=c < channels)


def sum_positions(maps: Maps, weights: Tensor, out: Tensor, eps: float | None = None) -> None:
    """Weighted sums over the positions, or means with `eps`; `out` (B, K, C) of any dtype.

    `weights` (B, K, N) is float32 and contiguous.
    """
    batch, channels, positions = maps.tensor.shape
    vectors = weights.shape[1]
    # 8 channels and 512 positions: 16 bytes a thread and four loads in flight, and of 1024
    # channels 128 programs, before the split, on the 132 multiprocessors of an H100.
    width = 128 if maps.channels_last else 512
    block_c, block_p = tile(maps, 4096, width)
    group = min(GROUP, power_of_two(vectors))
    programs = batch * cdiv(vectors, group) * cdiv(channels, block_c)
    parts = splits(programs, cdiv(positions, block_p), maps.tensor.device, waves=4)
    part = cdiv(cdiv(positions, block_p), parts) * block_p
    parts = cdiv(positions, part)
    sums = new(out, parts, batch, vectors, channels) if parts > 1 else out
    totals = new(out, parts, batch, vectors)
    _sum_positions[(programs * parts,)](
        *(maps.tensor, weights, sums, totals),
        *(batch, *maps.sizes, vectors, parts, part, *maps.strides, eps or 0.0),
        **maps.units,
        GROUP=group,
        WHOLE=parts == 1,
        MEAN=eps is not None,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        STAGES=3,
        num_warps=4,
    )
    if parts == 1:
        return
    rows, block = batch * vectors, min(1024, power_of_two(channels, 16))
    _add_parts[(rows, cdiv(channels, block))](
        *(sums, totals, out, parts, rows, channels, eps or 0.0),
        MEAN=eps is not None,
        BLOCK_C=block,
        num_warps=4,
    )


@triton.jit
def _sum_channels(
    maps, vectors, scores, norms,
    channels_u, positions_u, count, stride_b, stride_c, stride_p, scale, eps,
    CU: tl.constexpr, PU: tl.constexpr, GROUP: tl.constexpr, COSINE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    groups, blocks = tl.cdiv(count, GROUP), tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    # Groups of vectors first: they find the maps in the L2.
    first = pid % groups * GROUP
    p = pid // groups % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (pid // groups // blocks).to(tl.int64)
    inside = p < positions

    maps += b * stride_b * CU * PU
    vectors += (b * count + first) * channels
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    dots = (tl.zeros([BLOCK_C, BLOCK_P], tl.float32),) * GROUP
    own_squares = (tl.zeros([BLOCK_C], tl.float32),) * GROUP
    for start in tl.range(0, channels, BLOCK_C, num_stages=STAGES):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(
            maps + c[:, None] * (stride_c * PU) + p[None, :] * (stride_p * CU),
            mask=(c < channels)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        squares += x * x
        new_dots = ()
        new_squares = ()
        for k in tl.static_range(GROUP):
            there = (c < channels) & (first + k < count)
            y = tl.load(vectors + k * channels + c, mask=there, other=0.0).to(tl.float32)
            new_dots = new_dots + (dots[k] + x * y[:, None],)
            new_squares = new_squares + (own_squares[k] + y * y,)
        dots = new_dots
        own_squares = new_squares

    norm = tl.sqrt(tl.sum(squares, axis=0))
    if COSINE:
        if first == 0:
            tl.store(norms + b * positions + p, norm, mask=inside)
    for k in tl.static_range(GROUP):
        score = tl.sum(dots[k], axis=0)
        if COSINE:
            own = tl.sqrt(tl.sum(own_squares[k], axis=0))
            score *= scale / (tl.maximum(norm, eps) * tl.maximum(own, eps))
        keep = inside & (first + k < count)
        tl.store(scores + (b * count + first + k) * positions + p, score, mask=keep)


@triton.jit
def _sum_channels_of_many(
    maps, vectors, scores, norms,
    channels_u, positions_u, count, stride_b, stride_c, stride_p, scale, eps,
    CU: tl.constexpr, PU: tl.constexpr, GROUP: tl.constexpr, COSINE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    groups, blocks = tl.cdiv(count, GROUP), tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    k = pid % groups * GROUP + tl.arange(0, GROUP)
    p = pid // groups % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (pid // groups // blocks).to(tl.int64)
    inside = p < positions

    maps += b * stride_b * CU * PU
    vectors += b * count * channels
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    own_squares = tl.zeros([BLOCK_C, GROUP], tl.float32)
    dots = tl.zeros([BLOCK_P, GROUP], tl.float32)
    for start in tl.range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(
            maps + p[:, None] * (stride_p * CU) + c[None, :] * (stride_c * PU),
            mask=inside[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        y = tl.load(
            vectors + k[None, :] * channels + c[:, None],
            mask=(c < channels)[:, None] & (k < count)[None, :],
            other=0.0,
        )
        dots = tl.dot(x, y, dots, input_precision=PRECISION)
        squares += x.to(tl.float32) * x.to(tl.float32)
        own_squares += y.to(tl.float32) * y.to(tl.float32)

    if COSINE:
        norm = tl.sqrt(tl.sum(squares, axis=1))
        own = tl.sqrt(tl.sum(own_squares, axis=0))
        dots *= scale / (tl.maximum(norm, eps)[:, None] * tl.maximum(own, eps)[None, :])
        if pid % groups == 0:
            tl.store(norms + b * positions + p, norm, mask=inside)
    at = (b * count + k[None, :]) * positions + p[:, None]
    tl.store(scores + at, dots, mask=inside[:, None] & (k < count)[None, :])


def sum_channels(
    maps: Maps,
    vectors: Tensor,
    scores: Tensor,
    norms: Tensor | None = None,
    scale: float = 1.0,
    eps: float = 1.0,
) -> None:
    """Dot products with `vectors` (B, K, C), contiguous; scaled cosines where `norms` is given.

    Into `scores` (B, K, N) and, with it, the maps' norms into `norms` (B, N), float32.
    """
    batch, _, positions = maps.tensor.shape
    count = vectors.shape[1]
    cosine = norms is not None
    few = count <= GROUP
    # Enough programs for every multiprocessor, else tiles as large as the registers allow.
    width = 32 if batch * positions < 64 * 132 else 64
    if few:
        block_c, block_p = tile(maps, 4096, 128 if maps.channels_last else width)
    else:
        block_c, block_p = (16, 16) if interpreted() else (64, width)
    group = power_of_two(count) if few else min(MANY, power_of_two(count, 16))
    grid = (batch * cdiv(count, group) * cdiv(positions, block_p),)
    # Where no norms are wanted nothing is stored to them: any address does.
    inputs = (maps.tensor, vectors, scores, scores if norms is None else norms)
    sizes = (*maps.sizes, count, *maps.strides, scale, eps)
    constants = {**maps.units, "GROUP": group, "COSINE": cosine}
    constants |= {"BLOCK_C": block_c, "BLOCK_P": block_p}
    if few:
        _sum_channels[grid](*inputs, *sizes, **constants, STAGES=3, num_warps=8)
    else:
        # Plain float32 here: with 16 vectors the products take as long as the bytes.
        dot = "ieee" if vectors.dtype == torch.float32 and group == 16 else precision(vectors.dtype)
        _sum_channels_of_many[grid](*inputs, *sizes, **constants, PRECISION=dot, num_warps=4)


@triton.jit
def _spread(
    maps, weights, vectors, along, out,
    channels_u, positions_u, count, stride_b, stride_c, stride_p, out_b, out_c, out_p,
    CU: tl.constexpr, PU: tl.constexpr, OUT_CU: tl.constexpr, OUT_PU: tl.constexpr,
    ALONG: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * OUT_CU, positions_u * OUT_PU
    channel_blocks, blocks = tl.cdiv(channels, BLOCK_C), tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    c = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = pid // channel_blocks % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (pid // channel_blocks // blocks).to(tl.int64)
    inside = (c < channels)[:, None] & (p < positions)[None, :]

    result = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for k in range(count):
        at = b * count + k
        w = tl.load(weights + at * positions + p, mask=p < positions, other=0.0)
        v = tl.load(vectors + at * channels + c, mask=c < channels, other=0.0)
        result += v[:, None] * w[None, :]
    if ALONG:
        maps += b * stride_b * CU * PU
        x = tl.load(
            maps + c[:, None] * (stride_c * PU) + p[None, :] * (stride_p * CU),
            mask=inside,
            other=0.0,
        )
        r = tl.load(along + b * positions + p, mask=p < positions, other=0.0)
        result -= x.to(tl.float32) * r[None, :]
    out += b * out_b * OUT_CU * OUT_PU
    to = out + c[:, None] * (out_c * OUT_PU) + p[None, :] * (out_p * OUT_CU)
    tl.store(to, result, mask=inside)


def spread(
    out: Maps,
    weights: Tensor,
    vectors: Tensor,
    maps: Maps | None = None,
    along: Tensor | None = None,
) -> None:
    """Into `out` (B, C, N): the outer products of `weights` (B, K, N) with `vectors` (B, K, C).

    Both are float32 and contiguous. Where maps are given, `along` (B, N) times these is subtracted.
    """
    batch, channels, positions = out.tensor.shape
    block_c, block_p = tile(out, 4096, 128)
    grid = (batch * cdiv(channels, block_c) * cdiv(positions, block_p),)
    source = maps or out
    _spread[grid](
        *(source.tensor, weights, vectors, weights if along is None else along, out.tensor),
        *(*out.sizes, weights.shape[1], *source.strides, *out.strides),
        **source.units,
        OUT_CU=out.channel_unit,
        OUT_PU=out.position_unit,
        ALONG=maps is not None,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=4,
    )
