"""Reading images, masks and annotated folders; published annotations and augmentations."""

from __future__ import annotations

from fastfss.data.annotations import box_masks, dense_masks, dilate_scribble, scribble_masks
from fastfss.data.folders import read_support_folder
from fastfss.data.images import ImageLike, MaskLike, read_image, read_mask

__all__ = [
    "ImageLike",
    "MaskLike",
    "box_masks",
    "dense_masks",
    "dilate_scribble",
    "read_image",
    "read_mask",
    "read_support_folder",
    "scribble_masks",
]
