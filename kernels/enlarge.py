"""Maps enlarged, and where there is one a map of the larger grid added: HSNet's mixing of levels.

    out[b, i, j, e] = sum_ab r_ia c_jb small[b, a, b, e] [+ large[b, i, j, e]]

with the weights of bilinear resizing, align_corners=True. A program takes neighbouring elements of
a row of the result, 16 bytes a thread; the small map stays in the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import cdiv, interpreted, power_of_two


@triton.jit
def _enlarge(
    small, large, out, height, width, out_height, out_width, row_scale, column_scale,
    ADD: tl.constexpr, ELEMENTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(out_width, COLUMNS)
    pid = tl.program_id(0)
    row = pid // blocks % out_height
    b = (pid // blocks // out_height).to(tl.int64)
    column = pid % blocks * COLUMNS + tl.arange(0, COLUMNS)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < out_width)[:, None] & (element < ELEMENTS)[None, :]
    y = row * row_scale
    x = column * column_scale
    top = tl.minimum(y.to(tl.int32), height - 1)
    left = tl.minimum(x.to(tl.int32), width - 1)
    down, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    of_down, of_right = y - top, (x - left)[:, None]
    small += b * height * width * ELEMENTS
    above, below = small + top * width * ELEMENTS, small + down * width * ELEMENTS
    first = (left * ELEMENTS)[:, None] + element[None, :]
    second = (right * ELEMENTS)[:, None] + element[None, :]
    a = tl.load(above + first, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(above + second, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(below + first, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(below + second, mask=inside, other=0.0).to(tl.float32)
    upper, lower = a + (c - a) * of_right, d + (e - d) * of_right
    result = upper + (lower - upper) * of_down
    at = (b * out_height + row) * out_width * ELEMENTS
    at += (column * ELEMENTS)[:, None] + element[None, :]
    if ADD:
        result += tl.load(large + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, result, mask=inside)


def forward(
    small: Tensor,  # (B, h, w, E), contiguous, E a multiple of 8
    large: Tensor | None,  # (B, H, W, E), contiguous: what is added
    out: Tensor,  # (B, H, W, E), contiguous
) -> None:
    """Into `out`."""
    batch, height, width, elements = small.shape
    sizes = out.shape[1:3]
    scales = [(old - 1) / max(new - 1, 1) for old, new in zip((height, width), sizes, strict=True)]
    block = min(power_of_two(elements), 16 if interpreted() else 512)
    columns = 2 if interpreted() else 1024 // block
    _enlarge[(batch * sizes[0] * cdiv(sizes[1], columns), cdiv(elements, block))](
        *(small, small if large is None else large, out, height, width, *sizes, *scales),
        ADD=large is not None,
        ELEMENTS=elements,
        COLUMNS=columns,
        BLOCK=block,
        num_warps=4,
    )
