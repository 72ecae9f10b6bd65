"""Images, masks, annotated folders and data sets; published annotations and augmentations."""

from __future__ import annotations

from fastfss.data.annotations import box_masks, dense_masks, dilate_scribble, scribble_masks
from fastfss.data.folders import read_support_folder
from fastfss.data.images import ImageLike, MaskLike, read_image, read_label_map, read_mask
from fastfss.data.letterbox import letterbox_image, letterbox_labels, letterbox_size
from fastfss.data.loading import CachedImages, in_order
from fastfss.data.sets import Item, MaskSet, list_sets, open_set
from fastfss.data.videos import Video, VideoSet, open_davis

__all__ = [
    "CachedImages",
    "ImageLike",
    "Item",
    "MaskLike",
    "MaskSet",
    "Video",
    "VideoSet",
    "box_masks",
    "dense_masks",
    "dilate_scribble",
    "in_order",
    "letterbox_image",
    "letterbox_labels",
    "letterbox_size",
    "list_sets",
    "open_davis",
    "open_set",
    "read_image",
    "read_label_map",
    "read_mask",
    "read_support_folder",
    "scribble_masks",
]
