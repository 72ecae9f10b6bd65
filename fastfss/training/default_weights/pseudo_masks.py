"""Masks of photographs that have none."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from fastfss.errors import import_extra
from fastfss.training.default_weights.photos import Pixels

SIDE = 200
ROUNDS = 6
AREA = (0.05, 0.7)
ELLIPSE = 0.85  # of the sides
RIM = 0.03


def object_mask(image: Image.Image) -> Pixels | None:
    """The thing in the middle, by GrabCut from an ellipse; None where that finds no thing.

    Args:
        image: RGB.

    Returns:
        (H, W) of {0, 1}.
    """
    cv2: Any = import_extra("cv2", extra="interactive", purpose="masks of photographs")
    scale = SIDE / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)))
    pixels = np.asarray(small)[:, :, ::-1].copy()
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    u, v = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    inside = (u / ELLIPSE) ** 2 + (v / ELLIPSE) ** 2 < 1
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    rim = max(2, round(RIM * min(height, width)))
    outer = np.ones((height, width), dtype=bool)
    outer[rim:-rim, rim:-rim] = False
    labels[outer] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # its colour models begin at random
    models = np.zeros((2, 1, 65))
    cv2.grabCut(pixels, labels, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    if not AREA[0] < found.mean() < AREA[1]:
        return None
    large = Image.fromarray(found).resize(image.size, Image.Resampling.NEAREST)
    return np.array(large)
