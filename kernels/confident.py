"""SSP's confident positions: softmax of two scores, thresholds, the largest where none is above.

    p = softmax(background, foreground);  chosen = p > limit, or the `fallback` largest p where no
    position of the item is above

A program holds the probabilities of one item and one class, where PyTorch takes ten kernels, a
top-k among them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import interpreted, power_of_two

# Positions whose probabilities one program's registers hold.
MOST_POSITIONS = 8192


@triton.jit
def _confident(
    scores, out, positions, foreground_limit, background_limit,
    FALLBACK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // 2).to(tl.int64)
    wanted = tl.program_id(0) % 2  # 0: foreground, whose score is the second
    scores += b * 2 * positions
    n = tl.arange(0, BLOCK)
    inside = n < positions
    own = tl.load(scores + (1 - wanted) * positions + n, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(scores + wanted * positions + n, mask=inside, other=0.0).to(tl.float32)
    largest = tl.maximum(own, other)
    e, f = tl.exp(own - largest), tl.exp(other - largest)
    # Rounded as PyTorch's softmax rounds its result.
    p = (e / (e + f)).to(out.dtype.element_ty).to(tl.float32)
    limit = tl.where(wanted == 0, foreground_limit, background_limit)
    chosen = tl.where(inside & (p > limit), 1, 0)
    if tl.sum(chosen, axis=0) == 0:
        # NaN counts as the largest, as in torch.topk.
        rank = tl.where(p == p, p, float("inf"))
        rank = tl.where(inside, rank, -1.0)
        for _ in range(FALLBACK):
            top = tl.max(rank, axis=0)
            first = tl.min(tl.where(rank == top, n, BLOCK), axis=0)
            here = n == first
            chosen = tl.where(here, 1, chosen)
            rank = tl.where(here, -1.0, rank)
    tl.store(out + tl.program_id(0).to(tl.int64) * positions + n, chosen, mask=inside)


def forward(
    scores: Tensor,  # (B, 2, N), contiguous: background, foreground
    foreground_limit: float,
    background_limit: float,
    fallback: int,
    out: Tensor,  # (B, 2, N), contiguous: foreground, background
) -> None:
    """0 or 1 into `out`."""
    batch, _, positions = scores.shape
    _confident[(2 * batch,)](
        *(scores, out, positions, foreground_limit, background_limit),
        FALLBACK=min(fallback, positions),
        BLOCK=power_of_two(positions, 16),
        num_warps=4 if interpreted() else 8,
    )
