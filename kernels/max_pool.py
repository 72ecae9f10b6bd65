"""Maximum over windows of channels-last maps: every element is read from memory once.

A program takes neighbouring elements of a row of the result, 16 bytes a thread, and has the loads
of all taps in flight; what neighbouring windows share comes from the caches. 128 x 237 x 237 in 16
bits, 3 x 3 with stride 2: 18 MB, 4.4 us at 4.1 TB/s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import cdiv, interpreted


@triton.jit
def _max_pool(
    maps, out, height, width, out_height, out_width,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(out_width * CHANNELS, BLOCK)
    pid = tl.program_id(0)
    row = pid // blocks % out_height
    b = (pid // blocks // out_height).to(tl.int64)
    at = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    column, channel = at // CHANNELS, at % CHANNELS
    inside = column < out_width
    maps += b * height * width * CHANNELS
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        y = row * STRIDE - PADDING + tap // KERNEL
        x = column * STRIDE - PADDING + tap % KERNEL
        here = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        offsets = (y * width + x) * CHANNELS + channel
        value = tl.load(maps + offsets, mask=here, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    out += (b * out_height + row) * out_width * CHANNELS
    tl.store(out + at, best, mask=inside)


def forward(
    maps: Tensor,  # (B, C, H, W), channels last, C a multiple of 8
    kernel: int,
    stride: int,
    padding: int,
) -> Tensor:  # (B, C, H', W'), channels last
    """The maxima; sizes are rounded down."""
    batch, channels, height, width = maps.shape
    sizes = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    out = torch.empty(
        batch, channels, *sizes, dtype=maps.dtype, device=maps.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    block = 64 if interpreted() else 1024
    _max_pool[(batch * sizes[0] * cdiv(sizes[1] * channels, block),)](
        *(maps, out, height, width, *sizes),
        CHANNELS=channels,
        KERNEL=kernel,
        STRIDE=stride,
        PADDING=padding,
        BLOCK=block,
        num_warps=4,
    )
    return out
