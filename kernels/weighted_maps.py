"""SSP's local background prototypes from their sums, in one pass over the maps.

    out[b, c, n] = (x[b, c, n] + y[b, c, n]) w[b, n] + constant[b, c] + factor z[b, c, n]

x and y are float32, z and the result of the features' dtype. By PyTorch these are up to six passes
over float32 maps: at batch 32 2.2 ms of SSP's 26 on an H200.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import cdiv, interpreted


@triton.jit
def _weighted(
    x, y, weights, constant, z, out, elements, channels, positions, factor,
    TWO: tl.constexpr, OTHER: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    if LAST:
        channel, position = at % channels, at // channels
    else:
        channel, position = at // positions, at % positions
    start = b * elements
    maps = tl.load(x + start + at, mask=inside, other=0.0)
    if TWO:
        maps += tl.load(y + start + at, mask=inside, other=0.0)
    weight = tl.load(weights + b * positions + position, mask=inside, other=0.0)
    result = maps * weight
    result += tl.load(constant + b * channels + channel, mask=inside, other=0.0).to(tl.float32)
    if OTHER:
        result += factor * tl.load(z + start + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + at, result, mask=inside)


def forward(
    parts: tuple[Tensor, ...],  # one or two of (B, C, h, w), float32, one memory format
    weights: Tensor,  # (B, h, w), float32
    constant: Tensor,  # (B, C)
    other: Tensor | None,  # (B, C, h, w), in that memory format
    factor: float,
    out: Tensor,  # (B, C, h, w), in that memory format
) -> None:
    """Into `out`."""
    batch, channels, height, width = out.shape
    elements = out[0].numel()
    block = 64 if interpreted() else 1024
    x, y = parts[0], parts[-1]
    _weighted[(cdiv(elements, block), batch)](
        *(x, y, weights.contiguous(), constant.contiguous(), x if other is None else other, out),
        *(elements, channels, height * width, factor),
        TWO=len(parts) > 1,
        OTHER=other is not None,
        LAST=not out.is_contiguous(),
        BLOCK=block,
        num_warps=4,
    )
