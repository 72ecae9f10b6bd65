"""How feature maps lie in memory, and what the native kernels can walk without a copy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["channels_first", "channels_last"]


def is_channels_first(maps: Tensor) -> bool:
    """Whether each channel's positions of (B, C, h, w) follow each other."""
    _, _, height, width = maps.shape
    _, _, row_stride, column_stride = maps.stride()
    return (width == 1 or column_stride == 1) and (height == 1 or row_stride == width)


def is_channels_last(maps: Tensor) -> bool:
    """Whether each position's channels follow each other, and positions lie at equal distances."""
    _, channels, height, width = maps.shape
    _, channel_stride, row_stride, column_stride = maps.stride()
    one_step = width == 1 or height == 1 or row_stride == width * column_stride
    return (channels == 1 or channel_stride == 1) and one_step


def layout(maps: Tensor) -> Layout | None:
    """The layout of (B, C, h, w) that a kernel can walk, or None; see csrc's feature_maps.h.

    Channels, positions and batch items may lie at any distance. Where both fit (one position, or
    one channel), channels-first.
    """
    if is_channels_first(maps):
        return "channels_first"
    return "channels_last" if is_channels_last(maps) else None


def walkable(maps: Tensor) -> tuple[Tensor, bool]:
    """The maps, copied if they have neither layout, and whether they are channels-last."""
    found = layout(maps)
    if found is None:
        return maps.contiguous(), False
    return maps, found == "channels_last"


def copy_note(name: str, maps: Tensor) -> str | None:
    """What `explain` says of a tensor that has neither layout."""
    if layout(maps) is not None:
        return None
    return f"{name} is copied: strides {maps.stride()} are neither channels-first nor channels-last"


def empty_like(maps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient: the maps' shape and layout."""
    last = layout(maps) == "channels_last"
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(
        maps.shape, dtype=dtype or maps.dtype, device=maps.device, memory_format=memory_format
    )
