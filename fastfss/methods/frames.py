"""How images of any size become what a method was published with, and how results come back."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fastfss.data import letterbox_image, letterbox_labels, letterbox_size

# aspect: the longer side becomes `size`; square: both sides do, whatever the shape; letterbox: the
# image keeps its aspect in the top left of a square, as PFENet's evaluation has it.
Frame = Literal["aspect", "square", "letterbox"]
# Pixels of the longer side or of both, as the frame says; or height and width, to which every image
# is stretched (not "letterbox"); None keeps images as they are.
FrameSize = int | tuple[int, int] | None


def frame_size(
    height: int, width: int, frame: Frame, size: FrameSize
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What becomes of an image: the frame's height and width, and the image's in its top left.

    They differ for "letterbox" alone.

    Args:
        height, width: of the image.
        frame, size: as in frame_image.
    """
    if size is None:
        return (height, width), (height, width)
    if isinstance(size, tuple):
        return size, size
    if frame == "letterbox":
        return (size, size), letterbox_size(height, width, size)
    if frame == "square":
        return (size, size), (size, size)
    longer = max(height, width)
    scaled = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    return scaled, scaled


def frame_image(image: Tensor, frame: Frame, size: FrameSize) -> Tensor:
    """Bring an image to a method's size; bilinear, and antialiased unless letterboxed.

    Args:
        image: (1, 3, H, W) floating point, not yet normalised.
        frame: how.
        size: see FrameSize.

    Returns:
        (1, 3, h, w).
    """
    if frame == "letterbox" and isinstance(size, int):
        return letterbox_image(image, size)
    height, width = image.shape[-2:]
    wanted, _ = frame_size(height, width, frame, size)
    if wanted == (height, width):
        return image
    return F.interpolate(image, wanted, mode="bilinear", antialias=True)


def frame_mask(mask: Tensor, frame: Frame, size: FrameSize) -> Tensor:
    """Bring a support mask to a method's size, where the method needs masks of one size.

    Args:
        mask: (1, H, W) of {0, 1, 255}.
        frame, size: as in frame_image.

    Returns:
        (1, h, w); with "aspect" the mask as it is, since those methods take any size of mask and
        a larger one is more exact. 255 beside a letterboxed image.
    """
    if frame == "aspect" or size is None:
        return mask
    sides = (size, size) if isinstance(size, int) else size
    if frame == "letterbox":
        return letterbox_labels(mask, sides[0])
    if mask.shape[-2:] == sides:
        return mask
    small = F.interpolate(mask.unsqueeze(0).float(), sides, mode="nearest-exact")
    return small[0].to(mask.dtype)
