"""Letterboxing: an image of any shape in a square, its aspect kept, at the top left on a border.

As PFENet's evaluation does it (Tian et al., TPAMI 2020), which uses OpenCV: bilinear without
antialiasing for images, nearest for labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED

MULTIPLE = 8  # of both sides of the scaled image


def letterbox_size(height: int, width: int, size: int, *, enlarge: bool = True) -> tuple[int, int]:
    """The height and width that an image takes in a square of `size` pixels.

    The longer side becomes `size`, then both sides are rounded down to a multiple of 8.

    Args:
        height: of the image.
        width: of the image.
        size: of the square, at least 8.
        enlarge: whether smaller images are enlarged, or else stay as they are, unrounded.

    Examples:
        >>> letterbox_size(375, 500, 473)
        (352, 472)
    """
    longer = max(height, width)
    if longer <= size and not enlarge:
        return height, width
    scaled = [size if side == longer else int(side * (size / longer)) for side in (height, width)]
    # A strip so thin that nothing would be left of it keeps the least.
    rounded = [max(MULTIPLE, side // MULTIPLE * MULTIPLE) for side in scaled]
    return rounded[0], rounded[1]


def letterbox_image(images: Tensor, size: int, *, enlarge: bool = True) -> Tensor:
    """Letterbox images on zeros.

    Args:
        images: (B, C, H, W) floating point, not yet normalised.
        size: as in `letterbox_size`.
        enlarge: likewise.

    Returns:
        (B, C, size, size).
    """
    old = images.shape[-2:]
    height, width = letterbox_size(old[0], old[1], size, enlarge=enlarge)
    if old != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
    return F.pad(images, (0, size - width, 0, size - height))


def letterbox_labels(labels: Tensor, size: int, *, enlarge: bool = True) -> Tensor:
    """Letterbox label maps on 255, ignored.

    Args:
        labels: (B, H, W) of any dtype that holds 255.
        size: as in `letterbox_size`.
        enlarge: likewise.

    Returns:
        (B, size, size) of the same dtype.
    """
    old = labels.shape[-2:]
    height, width = letterbox_size(old[0], old[1], size, enlarge=enlarge)
    if old != (height, width):
        rows = _nearest(old[0], height).to(labels.device)
        columns = _nearest(old[1], width).to(labels.device)
        labels = labels[:, rows[:, None], columns]
    return F.pad(labels, (0, size - width, 0, size - height), value=IGNORED)


def _nearest(size: int, new_size: int) -> Tensor:
    """The source index of each of `new_size` pixels.

    OpenCV's floor(d * (1 / (new / old))) in float64, in this order: where d * old / new is a whole
    number, exact arithmetic and PyTorch's float32 may pick the neighbour.
    """
    step = 1 / (new_size / size)
    return (torch.arange(new_size, dtype=torch.float64) * step).floor().long().clamp_(max=size - 1)
