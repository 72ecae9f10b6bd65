"""The masks of a frame from a file: DAVIS's palette PNGs, and others that can be meant."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastfss.data import MaskLike, read_label_map, read_mask
from fastfss.errors import expected

_IGNORED = 255
# Beside 255, a mask of one object has no other values; soft edges have many.
_SOFT_VALUES = 3


def read_labels(path: str | Path, size: tuple[int, int], argument: str = "mask") -> Tensor:
    """The label map of a file, uint8 (H, W): 0 background, n object n, 255 nothing said.

    Args:
        path: a palette PNG, of which the indices count; or a grey or 1-bit one. If 255 is the only
            value but 0, it is object 1.
        size: it must have.
        argument: what messages call it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: colours, soft edges, another size, or no object.
    """
    found = read_label_map(path, size=size, argument=argument)
    values = [int(v) for v in found.unique() if v]
    name = f"{argument} '{path}'"
    if not values:
        raise expected(name, "at least one object", "only background")
    if max(values) > _IGNORED:
        raise expected(name, f"numbers of at most {_IGNORED}", str(max(values)))
    if values == [_IGNORED]:
        return (found != 0).to(torch.uint8)
    numbered = values == [*range(1, len(values)), _IGNORED]
    if _IGNORED in values and len(values) > _SOFT_VALUES and not numbered:
        some = ", ".join(map(str, values[:4]))
        wanted = "a number an object, and 255 for nothing said"
        raise expected(name, wanted, f"values {some}, ...: soft edges? Save it without smoothing")
    return found.to(torch.uint8)


def read_object_mask(mask: MaskLike, size: tuple[int, int], argument: str = "mask") -> Tensor:
    """The mask of one object, uint8 (H, W) of {0, 1, 255}; unlike `read_mask` it may be empty."""
    if not bool(read_label_map(mask, size=size, argument=argument).any()):
        return torch.zeros(size, dtype=torch.uint8)
    return read_mask(mask, size=size, argument=argument)
