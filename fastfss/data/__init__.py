"""Reading images, masks and annotated folders; published annotations and augmentations."""

from __future__ import annotations

from fastfss.data.annotations import box_masks, dense_masks, dilate_scribble, scribble_masks
from fastfss.data.folders import read_support_folder
from fastfss.data.images import ImageLike, MaskLike, read_image, read_label_map, read_mask
from fastfss.data.letterbox import letterbox_image, letterbox_labels, letterbox_size

__all__ = [
    "ImageLike",
    "MaskLike",
    "box_masks",
    "dense_masks",
    "dilate_scribble",
    "letterbox_image",
    "letterbox_labels",
    "letterbox_size",
    "read_image",
    "read_label_map",
    "read_mask",
    "read_support_folder",
    "scribble_masks",
]
