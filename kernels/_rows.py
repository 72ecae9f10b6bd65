"""Positions as rows: what the dense operations multiply.

Every query and key position is read many times by products of tiles, so it pays to have its
channels follow each other at 16-byte boundaries: the tensor cores' favourite order, and rows can be
gathered by index. Channels-last maps lie like that and are used as they are; channels-first maps
are copied once, which costs the time of reading and writing them (4 us for 1024 x 60 x 60 in 16
bits on an H100), in the pass that computes the norms anyway.

    inverse[b, n] = 1 / max(|x_n|, eps)      or, with ADD_EPS,      1 / (|x_n| + eps)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Maps, cdiv, interpreted, new, power_of_two, unit


@triton.jit
def _to_rows(
    maps, rows, inverse,
    channels_u, positions_u, stride_b, stride_c, stride_p, rows_b, rows_p, eps,
    CU: tl.constexpr, PU: tl.constexpr, COPY: tl.constexpr, NORMS: tl.constexpr,
    ADD_EPS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
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
        if COPY:
            tl.store(rows + p[:, None] * rows_p + c[None, :], x, mask=there)
    if NORMS:
        norm = tl.sqrt(tl.sum(squares, axis=1))
        divisor = norm + eps if ADD_EPS else tl.maximum(norm, eps)
        result = tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, divisor))
        tl.store(inverse + b * positions + p, result, mask=inside)


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
        batch, channels, positions = maps.shape
        dtype = dtype or maps.dtype
        in_place = dtype == maps.dtype and (maps.stride(1) == 1 or channels == 1)
        if in_place:
            rows = maps.transpose(1, 2)
            if channels == 1 and maps.stride(1) != 1:
                rows = rows.as_strided(rows.shape, (*rows.stride()[:2], 1))
        else:
            # Rows begin at 16-byte boundaries whatever the channels are.
            step = cdiv(channels, 16) * 16
            rows = new(maps, batch, positions, step, dtype=dtype)[:, :, :channels]
        inverse = new(maps, batch, positions) if eps is not None else rows
        if eps is not None or not in_place:
            _launch_to_rows(Maps.of(maps), rows, inverse, eps, add_eps, copy=not in_place)
        strides = rows.stride(0) if batch > 1 else 0, rows.stride(1) if positions > 1 else 0
        return cls(rows, inverse, unit(channels, *strides))

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
    maps: Maps, rows: Tensor, inverse: Tensor, eps: float | None, add_eps: bool, *, copy: bool
) -> None:
    batch, channels, positions = maps.tensor.shape
    # 32 positions a program: of 3600, 113 programs for the 132 multiprocessors of an H100.
    block_p = 16 if interpreted() else 32
    block_c = 16 if interpreted() else min(128, power_of_two(channels, 16))
    _to_rows[(batch * cdiv(positions, block_p),)](
        *(maps.tensor, rows, inverse),
        *(*maps.sizes, *maps.strides, *rows.stride()[:2], eps or 0.0),
        **maps.units,
        COPY=copy,
        NORMS=eps is not None,
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
