"""Reading images, masks and annotated folders."""

from __future__ import annotations

from fastfss.data.folders import read_support_folder
from fastfss.data.images import ImageLike, MaskLike, read_image, read_mask
from fastfss.data.letterbox import letterbox_image, letterbox_labels, letterbox_size

__all__ = [
    "ImageLike",
    "MaskLike",
    "letterbox_image",
    "letterbox_labels",
    "letterbox_size",
    "read_image",
    "read_mask",
    "read_support_folder",
]
