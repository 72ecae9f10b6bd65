"""Maps of any spatial dimensions: flat for the native core, results in the format of an input."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(maps: Tensor) -> bool:
    """Whether (B, C, *positions) lies as (B, *positions, C) and not as it is written."""
    return not maps.is_contiguous() and maps.movedim(1, -1).is_contiguous()


def as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """(B, N, D) -> (B, D, *positions), of the positions and in the memory format of `like`."""
    batch, _, channels = rows.shape
    if channels_last(like):
        return rows.contiguous().view(batch, *like.shape[2:], channels).movedim(-1, 1)
    # clone: for one channel or position, contiguous() may keep the argument and its strides.
    flat = rows.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return flat.view(batch, channels, *like.shape[2:])


def new_maps(like: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory for what `as_maps` returns."""
    batch, _, *positions = like.shape
    if channels_last(like):
        return like.new_empty((batch, *positions, channels), dtype=dtype).movedim(-1, 1)
    return like.new_empty((batch, channels, *positions), dtype=dtype)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def flat_inputs(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each as (B, C, N), a view where possible.

    The native core sees one tensor in several places by its address; flatten may copy, so it is
    done once for each tensor.
    """
    q = query.flatten(2)
    k = q if _same(key, query) else key.flatten(2)
    return q, k, k if _same(value, key) else value.flatten(2)
