"""Episodes as the published loaders of the HSNet family make them: Pillow, NumPy, floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastfss.data.sets import MaskSet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def published_episode(
    images: MaskSet, cls: int, numbers: Sequence[int], size: int
) -> tuple[Tensor, Tensor]:
    """Read an episode's images from their files.

    Args:
        images: says where the files are.
        cls: the episode's class.
        numbers: the supports, then the query.
        size: of the square.

    Returns:
        Normalised images (N, 3, size, size) and float masks (N, size, size) of {0, 1, 255}.
    """
    pixels, masks = [], []
    for number in numbers:
        item = images.items[number]
        photo = Image.open(item.image).convert("RGB")
        resized = photo.resize((size, size), Image.Resampling.BILINEAR)
        values = np.asarray(resized, dtype=np.float32) / np.float32(255)
        values = (values - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
        pixels.append(torch.from_numpy(values.transpose(2, 0, 1).copy()))
        labels = torch.tensor(np.array(Image.open(item.mask)))
        mask = torch.where(labels == 255, 255, (labels == cls).long()).float()
        masks.append(F.interpolate(mask[None, None], (size, size), mode="nearest")[0, 0])
    return torch.stack(pixels), torch.stack(masks)
