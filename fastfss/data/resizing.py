"""Images and masks brought to a size, the aspect lost, as the published loaders do it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MaskResize = Literal["torch", "pillow"]


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image by Pillow, bilinear and antialiased.

    Args:
        image: uint8 (3, H, W).
        size: (height, width).

    Returns:
        uint8 (3, height, width).
    """
    if tuple(image.shape[1:]) == size:
        return image
    height, width = size
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized.transpose(2, 0, 1).copy())


def resize_maps(maps: Tensor, size: tuple[int, int], how: MaskResize) -> Tensor:
    """Masks or label maps by nearest neighbour.

    The source of row i of n is floor(i H / n) with "torch", as HSNet has it, and
    floor((i + 1/2) H / n) with "pillow", as PANet and DENet.

    Args:
        maps: uint8 (M, H, W).
        size: (height, width).
        how: see above.

    Returns:
        uint8 (M, height, width).
    """
    if tuple(maps.shape[1:]) == size:
        return maps
    if how == "torch":
        return F.interpolate(maps[None], size, mode="nearest")[0]
    height, width = size
    pictures = (Image.fromarray(one.numpy()) for one in maps)
    resized = [np.array(p.resize((width, height), Image.Resampling.NEAREST)) for p in pictures]
    return torch.from_numpy(np.stack(resized))
