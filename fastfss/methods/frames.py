"""How images of any size become what a method was published with, and how results come back."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

# aspect: the longer side becomes `size`; square: both sides do, whatever the shape.
Frame = Literal["aspect", "square"]


def frame_image(image: Tensor, frame: Frame, size: int | None) -> Tensor:
    """Bring an image to a method's size; bilinear, antialiased.

    Args:
        image: (1, 3, H, W) floating point.
        frame: how.
        size: pixels; None keeps the image as it is.

    Returns:
        (1, 3, h, w).
    """
    if size is None:
        return image
    height, width = image.shape[-2:]
    if frame == "square":
        wanted = (size, size)
    else:
        longer = max(height, width)
        wanted = (max(1, round(height * size / longer)), max(1, round(width * size / longer)))
    if wanted == (height, width):
        return image
    return F.interpolate(image, wanted, mode="bilinear", antialias=True)


def frame_mask(mask: Tensor, frame: Frame, size: int | None) -> Tensor:
    """Bring a support mask to a method's size, where the method needs masks of one size.

    Args:
        mask: (1, H, W) of {0, 1, 255}.
        frame, size: as in frame_image.

    Returns:
        (1, h, w); with "aspect" the mask as it is, since those methods take any size of mask and
        a larger one is more exact.
    """
    if frame == "aspect" or size is None or mask.shape[-2:] == (size, size):
        return mask
    small = F.interpolate(mask.unsqueeze(0).float(), (size, size), mode="nearest-exact")
    return small[0].to(mask.dtype)
