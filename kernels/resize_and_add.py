"""A coarse map enlarged to a finer one's grid, plus that one: HSNet's mixing of levels.

    out[b, i, j, e] = large[b, i, j, e] + sum_ab r_ia c_jb small[b, a, b, e]

with the weights of bilinear resizing, align_corners=True. A program takes neighbouring elements of
a row of the result, 16 bytes a thread; the coarse map stays in the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import cdiv, interpreted


@triton.jit
def _resize_and_add(
    small, large, out, height, width, out_height, out_width, row_scale, column_scale,
    ELEMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(out_width * ELEMENTS, BLOCK)
    pid = tl.program_id(0)
    row = pid // blocks % out_height
    b = (pid // blocks // out_height).to(tl.int64)
    at = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    column, element = at // ELEMENTS, at % ELEMENTS
    inside = column < out_width
    y = row * row_scale
    x = column * column_scale
    top = tl.minimum(y.to(tl.int32), height - 1)
    left = tl.minimum(x.to(tl.int32), width - 1)
    down, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    of_down, of_right = y - top, x - left
    small += b * height * width * ELEMENTS
    above, below = small + top * width * ELEMENTS, small + down * width * ELEMENTS
    first, second = left * ELEMENTS + element, right * ELEMENTS + element
    a = tl.load(above + first, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(above + second, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(below + first, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(below + second, mask=inside, other=0.0).to(tl.float32)
    upper, lower = a + (c - a) * of_right, d + (e - d) * of_right
    start = (b * out_height + row) * out_width * ELEMENTS
    own = tl.load(large + start + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + at, own + upper + (lower - upper) * of_down, mask=inside)


def forward(
    small: Tensor,  # (B, h, w, E), contiguous, E a multiple of 8
    large: Tensor,  # (B, H, W, E), contiguous
) -> Tensor:  # (B, H, W, E)
    """The sum."""
    batch, height, width, elements = small.shape
    sizes = large.shape[1:3]
    scales = [(old - 1) / max(new - 1, 1) for old, new in zip((height, width), sizes, strict=True)]
    out = torch.empty_like(large)
    block = 64 if interpreted() else 1024
    _resize_and_add[(batch * sizes[0] * cdiv(sizes[1] * elements, block),)](
        *(small, large, out, height, width, *sizes, *scales),
        ELEMENTS=elements,
        BLOCK=block,
        num_warps=4,
    )
    return out
