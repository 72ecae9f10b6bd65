"""Reading images, masks and annotated folders."""

from __future__ import annotations

from fastfss.data.folders import read_support_folder
from fastfss.data.images import ImageLike, MaskLike, read_image, read_label_map, read_mask

__all__ = [
    "ImageLike",
    "MaskLike",
    "read_image",
    "read_label_map",
    "read_mask",
    "read_support_folder",
]
