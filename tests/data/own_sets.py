"""Small sets of one's own, made for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def write_pair(
    image: Path, mask: Path, labels: npt.ArrayLike, *, mode: str = "L", seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Write a random photo and its mask; return the photo, (H, W, 3)."""
    labels = np.asarray(labels, dtype=np.uint8)
    photo = np.random.default_rng(seed).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(image)
    written = Image.fromarray(labels)
    if mode == "P":
        written.putpalette([value for n in range(256) for value in (n, 255 - n, 7 * n % 256)])
    elif mode == "1":
        written = Image.fromarray(labels != 0)
    elif mode == "RGB":
        written = written.convert("RGB")
    written.save(mask)
    return photo


def label_map(height: int, width: int, labels: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Columns of equal labels, as wide as they fit, over a first row of background."""
    values = np.asarray(labels, dtype=np.uint8)[np.arange(width) * len(labels) // width]
    mask = np.tile(values, (height, 1))
    mask[0] = 0
    return mask
