"""PANet's support annotations: dense masks, and the scribbles and boxes it takes instead.

Each gives two masks, foreground and background; pixels that neither covers are unannotated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected

NO_STROKE = 255
BACKGROUND_STROKE = 0


def dense_masks(label: Tensor, number: int, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the masks of one class of an episode.

    As published, pixels to be ignored (255) are background, and so are classes outside the episode.

    Args:
        label: (H, W) class numbers of the support image.
        number: the class of the support.
        classes: all classes of the episode; pixels of the others are in neither mask.

    Returns:
        Foreground and background, (H, W) uint8 of {0, 1}.

    Raises:
        ValueError: another shape, or a class that is not of the episode.
    """
    _check_map("label", label)
    if number not in classes:
        raise expected("number", f"one of the episode's classes {list(classes)}", str(number))
    episode = torch.as_tensor(list(classes), device=label.device)
    return (label == number).byte(), (~torch.isin(label.long(), episode)).byte()


def scribble_masks(
    scribble: Tensor, foreground: Tensor, generator: random.Random
) -> tuple[Tensor, Tensor]:
    """Return the masks of a scribble map.

    The foreground is one of the strokes that touch the object, chosen at random, where it does; it
    is empty if none does, and then nothing is drawn from the generator.

    Args:
        scribble: (H, W): 0 background stroke, 255 nothing, other values object strokes. See
            `dilate_scribble` for thicker ones.
        foreground: (H, W) the object's dense mask.
        generator: chooses the stroke. The published code draws from Python's global generator.

    Returns:
        Foreground and background, (H, W) uint8 of {0, 1}.

    Raises:
        ValueError: other or different shapes.
    """
    _check_map("scribble", scribble)
    inside = _like("foreground", foreground, scribble)
    found = set(scribble[inside].unique().tolist()) - {NO_STROKE, BACKGROUND_STROKE}
    background = (scribble == BACKGROUND_STROKE).byte()
    if not found:
        return torch.zeros_like(background), background
    stroke = generator.choice(sorted(found))
    return ((scribble == stroke) & inside).byte(), background


def dilate_scribble(scribble: Tensor, size: int) -> Tensor:
    """Thicken the strokes by a minimum filter; where strokes meet, the lower value wins.

    Args:
        scribble: (H, W) uint8 as in `scribble_masks`.
        size: the filter's side in pixels. An even one reaches a pixel further up and left.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: another shape or a size below 1.
    """
    _check_map("scribble", scribble)
    if size < 1:
        raise expected("size", "at least 1", str(size))
    before, after = size // 2, size - size // 2 - 1
    # The maximum of the negative; NO_STROKE outside the image is never the minimum.
    padded = F.pad(scribble[None].float(), (before, after, before, after), value=NO_STROKE)
    return (-F.max_pool2d(-padded, size, stride=1))[0].byte()


def box_masks(instances: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks of the bounding boxes of a class.

    Args:
        instances: (H, W) instance numbers, 0 for none.
        foreground: (H, W) the class's dense mask; only its pixels count as instances.

    Returns:
        (H, W) uint8 of {0, 1}: the box of the instance with most pixels (of equals, the lowest
        number; empty without any), and what lies outside the boxes of all instances.

    Raises:
        ValueError: other or different shapes.
    """
    _check_map("instances", instances)
    inside = _like("foreground", foreground, instances)
    numbers, sizes = instances[inside & (instances != 0)].unique(return_counts=True)
    box = torch.zeros(instances.shape, dtype=torch.uint8, device=instances.device)
    background = torch.ones_like(box)
    largest = int(sizes.argmax()) if len(sizes) else None
    for place, number in enumerate(numbers.tolist()):
        rows, columns = torch.where((instances == number) & inside)
        covered = (
            slice(int(rows.min()), int(rows.max()) + 1),
            slice(int(columns.min()), int(columns.max()) + 1),
        )
        background[covered] = 0
        if place == largest:
            box[covered] = 1
    return box, background


def _check_map(argument: str, values: Tensor) -> None:
    if values.ndim != 2:
        raise expected(argument, "(H, W)", str(tuple(values.shape)))


def _like(argument: str, mask: Tensor, other: Tensor) -> Tensor:
    if mask.shape != other.shape:
        raise expected(argument, f"the map's {tuple(other.shape)}", str(tuple(mask.shape)))
    return mask != 0
