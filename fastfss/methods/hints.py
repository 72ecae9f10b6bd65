"""What is known of the query itself, as maps: an earlier mask, and what was clicked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 5  # of a mark, in cells of 2 x 2 pixels


def hints_of(said: Tensor, size: tuple[int, int], prior: Tensor | None = None) -> Tensor:
    """The hints of `CueFusion.segment_from`.

    Args:
        said: uint8 (H, W) of {0, 1, 255}, as Annotation.rasterize gives it.
        size: of the query as the encoder sees it.
        prior: (H, W), the probability of the object so far.

    Returns:
        (1, 3, h, w) at half the size: the prior in -1..1, 0 without one; how near the next positive
        and negative marks are, 1 on them and 0 from 10 pixels on.
    """
    cells = (max(1, size[0] // 2), max(1, size[1] // 2))
    marks = torch.stack([said == 1, said == 0]).float()
    near = nearness(F.adaptive_max_pool2d(marks, cells))
    before = torch.zeros(1, *cells, device=near.device)
    if prior is not None:
        p = prior.to(near)[None, None]
        before = F.interpolate(p, cells, mode="bilinear", antialias=True)[0] * 2 - 1
    return torch.cat([before, near]).unsqueeze(0)


def nearness(marks: Tensor) -> Tensor:
    """1 on marked cells, falling to 0 at REACH cells' distance.

    Args:
        marks: (N, h, w) of {0, 1}.
    """
    # A click is small: beyond its reach there is nothing to look for.
    marked = marks.amax(dim=0) > 0
    rows, columns = (marked.any(dim=1 - axis).nonzero()[:, 0].tolist() for axis in (0, 1))
    if not rows:
        return marks
    near = marks.clone()
    top, left = max(0, rows[0] - REACH), max(0, columns[0] - REACH)
    around = near[:, top : rows[-1] + REACH + 1, left : columns[-1] + REACH + 1]
    around.copy_(_grown(around))
    return near


def _grown(marks: Tensor) -> Tensor:
    """`nearness` of a map as far as it goes."""
    height, width = marks.shape[-2:]
    padded = F.pad(marks, (REACH,) * 4)
    near = marks.clone()
    for dy in range(-REACH, REACH + 1):
        for dx in range(-REACH, REACH + 1):
            height_there = 1 - (dx * dx + dy * dy) ** 0.5 / REACH
            if height_there > 0:
                top, left = REACH + dy, REACH + dx
                moved = padded[:, top : top + height, left : left + width]
                near = torch.maximum(near, moved * height_there)
    return near
