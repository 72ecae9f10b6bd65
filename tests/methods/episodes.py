"""Episodes and pictures of noise with a brighter object."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def episode(
    batch: int = 1, shots: int = 1, size: int = 64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Supports (B, K, 3, H, W), masks (B, K, H, W) of an eighth of each, a query of noise alone."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, shots, 3, size, size, generator=generator)
    masks = torch.zeros(batch, shots, size, size)
    masks[..., size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
    images += 2 * masks.unsqueeze(2)
    query = torch.randn(batch, 3, size, size, generator=generator)
    return images, masks, query


def picture(height: int = 60, width: int = 90) -> tuple[Image.Image, np.ndarray]:
    """A photograph and its mask of 0 and 255."""
    pixels = np.random.default_rng(0).integers(0, 80, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[15:40, 20:60] = 255
    pixels[mask > 0] += 150
    return Image.fromarray(pixels), mask
