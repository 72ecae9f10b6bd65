"""Support sets as methods take them, checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastfss.errors import expected, expected_kind

Images = Tensor | Sequence[Tensor]


def shots_of(
    images: Images, masks: Images, *, argument: str = "masks"
) -> tuple[list[Tensor], list[Tensor]]:
    """Check a support set and return it as K images (B, 3, H, W) and K masks (B, H, W).

    `argument` is what messages call the masks.

    Raises:
        TypeError: for other things than tensors.
        ValueError: for wrong shapes, different numbers of images and masks, or no shot.
    """
    lists = []
    for name, value, rank in (("images", images, 4), (argument, masks, 3)):
        if isinstance(value, Tensor):
            if value.ndim != rank + 1:
                shape = "(B, K, 3, H, W)" if rank == 4 else "(B, K, H, W)"
                raise expected(name, shape, str(tuple(value.shape)))
            value = list(value.unbind(1))
        for index, one in enumerate(value):
            if not isinstance(one, Tensor):
                raise expected_kind(f"{name}[{index}]", "a tensor", type(one).__name__)
            if one.ndim != rank or (rank == 4 and one.shape[1] != 3):
                shape = "(B, 3, H, W)" if rank == 4 else "(B, H, W)"
                raise expected(f"{name}[{index}]", shape, str(tuple(one.shape)))
        lists.append(list(value))
    first, second = lists
    if len(first) != len(second) or not first:
        raise expected(
            argument, "one mask an image, at least one", f"{len(second)} for {len(first)}"
        )
    if len({one.shape[0] for one in first + second}) != 1:
        sizes = [one.shape[0] for one in first + second]
        raise expected(f"images and {argument}", "the same batch size in all shots", str(sizes))
    return first, second


def stacked_shots(images: Images, masks: Images) -> tuple[Tensor, Tensor]:
    """Check a support set whose shots have one size: (B, K, 3, H, W) and (B, K, H, W).

    Raises:
        TypeError, ValueError: as `shots_of`, and for shots or masks of different sizes.
    """
    shot_images, shot_masks = shots_of(images, masks)
    for argument, shots in (("images", shot_images), ("masks", shot_masks)):
        if len({one.shape for one in shots}) != 1:
            sizes = ", ".join(f"{one.shape[-2]} x {one.shape[-1]}" for one in shots)
            raise expected(argument, "the same size in all shots", sizes)
    return torch.stack(shot_images, dim=1), torch.stack(shot_masks, dim=1)


def masks_of(masks: Images, shots: int, batch: int, *, argument: str = "masks") -> list[Tensor]:
    """Check the masks of K encoded shots and return them as K tensors (B, H, W).

    Raises:
        TypeError: for other things than tensors.
        ValueError: for no shot, wrong shapes, another number of shots or another batch.
    """
    if isinstance(masks, Tensor):
        if masks.ndim != 4:
            raise expected(argument, "(B, K, H, W)", str(tuple(masks.shape)))
        masks = list(masks.unbind(1))
    for index, one in enumerate(masks):
        if not isinstance(one, Tensor):
            raise expected_kind(f"{argument}[{index}]", "a tensor", type(one).__name__)
        if one.ndim != 3 or one.shape[0] != batch:
            raise expected(f"{argument}[{index}]", f"({batch}, H, W)", str(tuple(one.shape)))
    if not shots or len(masks) != shots:
        wanted = "one mask for each of the features, at least one"
        raise expected(argument, wanted, f"{len(masks)} for {shots}")
    return list(masks)


def stacked_masks(masks: Images, shots: int, batch: int, *, argument: str = "masks") -> Tensor:
    """Check the masks of K encoded shots, of one size: (B, K, H, W).

    Raises:
        TypeError, ValueError: as `masks_of`, and for masks of different sizes.
    """
    listed = masks_of(masks, shots, batch, argument=argument)
    if len({one.shape for one in listed}) != 1:
        sizes = ", ".join(f"{one.shape[-2]} x {one.shape[-1]}" for one in listed)
        raise expected(argument, "the same size in all shots", sizes)
    return torch.stack(listed, dim=1)
