"""Positions as rows: what the dense operations multiply.

Every query and key position is read many times by products of tiles, so it pays to have its
channels follow each other at 16-byte boundaries: the tensor cores' favourite order, and rows can be
gathered by index. Channels-last maps lie like that and are used as they are; channels-first maps
are copied once, which costs the time of reading and writing them (4 us for 1024 x 60 x 60 in 16
bits on an H100), in the pass that computes the norms anyway. The norms of maps that are used as
they are come from one launch for all maps of a call.

    inverse[b, n] = 1 / max(|x_n|, eps)      or, with ADD_EPS,      1 / (|x_n| + eps)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Maps, cdiv, interpreted, new, power_of_two, unit


@triton.jit
def _inverse(squares, eps, ADD_EPS: tl.constexpr):
    norm = tl.sqrt(squares)
    divisor = norm + eps if ADD_EPS else tl.maximum(norm, eps)
    return tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, divisor))


@triton.jit
def _to_rows(
    maps, rows, inverse,
    channels_u, positions_u, stride_b, stride_c, stride_p, rows_b, rows_p, eps,
    CU: tl.constexpr, PU: tl.constexpr, NORMS: tl.constexpr, ADD_EPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    blocks = tl.cdiv(positions, BLOCK_P)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    inside = p < positions
    maps += b * stride_b * CU * PU
    rows += b * rows_b
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in tl.range(0, channels, BLOCK_C, num_stages=STAGES):
        c = start + tl.arange(0, BLOCK_C)
        there = inside[:, None] & (c < channels)[None, :]
        at = p[:, None] * (stride_p * CU) + c[None, :] * (stride_c * PU)
        x = tl.load(maps + at, mask=there, other=0.0)
        squares += x.to(tl.float32) * x.to(tl.float32)
        tl.store(rows + p[:, None] * rows_p + c[None, :], x, mask=there)
    if NORMS:
        result = _inverse(tl.sum(squares, axis=1), eps, ADD_EPS)
        tl.store(inverse + b * positions + p, result, mask=inside)


@triton.jit
def _inverse_norms(
    maps, inverses, channels_u, positions, steps, row_strides, blocks, eps,
    MAPS: tl.constexpr, UNIT: tl.constexpr, ADD_EPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    number = pid // blocks % MAPS
    b = (pid // blocks // MAPS).to(tl.int64)

    # A tuple takes no index that is known only at run time.
    rows, inverse = maps[0], inverses[0]
    channels, count, step, stride = channels_u[0], positions[0], steps[0], row_strides[0]
    for at in tl.static_range(1, MAPS):
        rows = tl.where(number == at, maps[at], rows)
        inverse = tl.where(number == at, inverses[at], inverse)
        channels = tl.where(number == at, channels_u[at], channels)
        count = tl.where(number == at, positions[at], count)
        step = tl.where(number == at, steps[at], step)
        stride = tl.where(number == at, row_strides[at], stride)

    p = pid % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < count
    channels *= UNIT
    rows += b * step * UNIT + p[:, None] * (stride * UNIT)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in tl.range(0, channels, BLOCK_C, num_stages=STAGES):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(rows + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        squares += x.to(tl.float32) * x.to(tl.float32)
    result = _inverse(tl.sum(squares, axis=1), eps, ADD_EPS)
    tl.store(inverse + b * count + p, result, mask=inside)


@dataclass(frozen=True)
class Rows:
    """(B, N, C) with contiguous channels, and the inverse norms where they were asked for.

    Attributes:
        tensor: (B, N, C).
        inverse: (B, N) float32; of no meaning where no norms were asked for.
        unit: a power of two that divides channels and strides; the kernels get these divided by it.
    """

    tensor: Tensor
    inverse: Tensor
    unit: int

    @classmethod
    def of(
        cls,
        maps: Tensor,  # (B, C, N)
        *,
        eps: float | None = None,
        add_eps: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Rows:
        """The maps' positions as rows, copied only if need be; `eps` asks for inverse norms."""
        return cls.of_all([maps], eps=eps, add_eps=add_eps, dtype=dtype)[0]

    @classmethod
    def of_all(
        cls,
        several: Sequence[Tensor],  # (B, C_l, N_l) of one dtype
        *,
        eps: float | None = None,
        add_eps: bool = False,
        dtype: torch.dtype | None = None,
    ) -> list[Rows]:
        """`of` of each."""
        made, as_they_are = [], []
        for maps in several:
            batch, channels, positions = maps.shape
            in_place = dtype in (None, maps.dtype) and (maps.stride(1) == 1 or channels == 1)
            if in_place:
                rows = maps.transpose(1, 2)
                if channels == 1 and maps.stride(1) != 1:
                    rows = rows.as_strided(rows.shape, (*rows.stride()[:2], 1))
            else:
                # Rows begin at 16-byte boundaries whatever the channels are.
                step = cdiv(channels, 16) * 16
                rows = new(maps, batch, positions, step, dtype=dtype or maps.dtype)
                rows = rows[:, :, :channels]
            inverse = new(maps, batch, positions) if eps is not None else rows
            strides = rows.stride(0) if batch > 1 else 0, rows.stride(1) if positions > 1 else 0
            made.append(cls(rows, inverse, unit(channels, *strides)))
            if in_place:
                as_they_are.append(made[-1])
            else:
                _launch_to_rows(Maps.of(maps), rows, inverse, eps, add_eps)
        if as_they_are and eps is not None:
            _launch_inverse_norms(as_they_are, eps, add_eps)
        return made

    def items(self, start: int, stop: int) -> Rows:
        """Those of the items [start, stop) of the batch, as views."""
        tensor, inverse = self.tensor[start:stop], self.inverse[start:stop]
        return replace(self, tensor=tensor, inverse=inverse)

    @property
    def positions(self) -> int:
        """N."""
        return self.tensor.shape[1]

    @property
    def strides(self) -> tuple[int, int]:
        """Of items and rows, in units."""
        return self.strides_in(self.unit)

    def strides_in(self, unit: int) -> tuple[int, int]:
        """Of items and rows, in units of a divisor of `self.unit`."""
        batch, positions, _ = self.tensor.shape
        of_item, of_row, _ = self.tensor.stride()
        return (of_item // unit if batch > 1 else 0, of_row // unit if positions > 1 else 1)


def _launch_to_rows(
    maps: Maps, rows: Tensor, inverse: Tensor, eps: float | None, add_eps: bool
) -> None:
    batch, channels, positions = maps.tensor.shape
    # 32 positions a program: of 3600, 113 programs for the 132 multiprocessors of an H100.
    block_p = 16 if interpreted() else 32
    block_c = 16 if interpreted() else min(128, power_of_two(channels, 16))
    _to_rows[(batch * cdiv(positions, block_p),)](
        *(maps.tensor, rows, inverse),
        *(*maps.sizes, *maps.strides, *rows.stride()[:2], eps or 0.0),
        **maps.units,
        NORMS=eps is not None,
        ADD_EPS=add_eps,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        STAGES=3,
        num_warps=4,
    )


def _launch_inverse_norms(several: list[Rows], eps: float, add_eps: bool) -> None:
    batch = len(several[0].tensor)
    most = max(one.positions for one in several)
    channels = max(one.tensor.shape[2] for one in several)
    common = unit(*(one.unit for one in several))
    # 16 elements a thread and step, loaded in 16 bytes; eight positions of 256 channels or more
    # make 132 programs even of HSNet's six maps of 13 x 13.
    block_c = 16 if interpreted() else min(256, power_of_two(channels, 16))
    block_p = 16 if interpreted() else 2048 // block_c
    blocks = cdiv(most, block_p)
    _inverse_norms[(batch * len(several) * blocks,)](
        tuple(one.tensor for one in several),
        tuple(one.inverse for one in several),
        tuple(one.tensor.shape[2] // common for one in several),
        tuple(one.positions for one in several),
        tuple(one.strides_in(common)[0] for one in several),
        tuple(one.strides_in(common)[1] for one in several),
        *(blocks, eps),
        MAPS=len(several),
        UNIT=common,
        ADD_EPS=add_eps,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        STAGES=3,
        num_warps=4,
    )


@dataclass(frozen=True)
class Selection:
    """The key positions that count, in their order.

    Attributes:
        order: (B, M) int32, the first `count[b]` of each row are indices of positions.
        weights: (B, M) float32, by position.
        count: (B,) int32, on the device: the host never learns it.
    """

    order: Tensor
    weights: Tensor
    count: Tensor

    @classmethod
    def of(cls, weights: Tensor, *, positive: bool) -> Selection:
        """Of (B, M): the positions whose weight is not zero, or those where it is above zero."""
        weights = weights.to(torch.float32).contiguous()
        batch, keys = weights.shape
        order = new(weights, batch, keys, dtype=torch.int32)
        count = new(weights, batch, dtype=torch.int32)
        block = 16 if interpreted() else min(4096, power_of_two(keys, 16))
        _select[(batch,)](weights, order, count, keys, POSITIVE=positive, BLOCK=block, num_warps=8)
        return cls(order, weights, count)

    def items(self, start: int, stop: int) -> Selection:
        """That of the items [start, stop) of the batch, as views."""
        part = slice(start, stop)
        return Selection(self.order[part], self.weights[part], self.count[part])


@triton.jit
def _select(weights, order, count, keys, POSITIVE: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    weights += b * keys
    order += b * keys
    done = 0
    for start in range(0, keys, BLOCK):
        j = start + tl.arange(0, BLOCK)
        w = tl.load(weights + j, mask=j < keys, other=0.0)
        # NaN counts: the result shall show it.
        chosen = (tl.where(w <= 0.0, 0, 1) if POSITIVE else tl.where(w == 0.0, 0, 1)).to(tl.int32)
        chosen = tl.where(j < keys, chosen, 0)
        place = done + tl.cumsum(chosen, axis=0) - chosen
        tl.store(order + place, j, mask=chosen > 0)
        done += tl.sum(chosen, axis=0)
    tl.store(count + b, done)
