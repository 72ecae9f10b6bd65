"""Masks in whatever form a user holds them, as object, background and ignored pixels."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.images import (
    ImageLike,
    channels_last,
    check_finite,
    label_of,
    load_pil,
    open_pil,
    to_numpy,
)

MaskLike: TypeAlias = ImageLike

BACKGROUND, OBJECT, IGNORE = 0, 1, 255

# More labels than any one photo is likely to show: a soft edge or JPEG noise, not a label map.
_MANY_LABELS = 32


def read_mask(
    mask: MaskLike,
    *,
    size: tuple[int, int] | None = None,
    value: int | None = None,
    argument: str = "mask",
) -> Tensor:
    """Read a mask from a file, a PIL image, an array or a tensor.

    The labels of a mask are: the values of a 1-bit, grey (8, 16 or 32 bits) or palette image (the
    palette's indices, not its colours); the common value of the three channels of a grey RGB image;
    0 for black and 1 for the other colour of an RGB image with two; the values of an integer, bool
    or whole-numbered float array. A mask with an alpha channel that is opaque in some pixels and
    clear in others is taken from alpha alone (at least half opaque = object), unless ``value`` is
    given. Shapes are as in `read_image`.

    With ``value`` the object is that label. Without it the mask must have one label other than 0,
    which is the object. 255 beside another label than 0 means ignored pixels; in a mask of 0 and
    255 alone it is the object.

    Args:
        mask: the mask.
        size: (H, W) it must have, its image's.
        value: the label of the object in a label map.
        argument: what to call it in error messages.

    Returns:
        (H, W) uint8 on the CPU: 0 background, 1 object, 255 ignore; at least one pixel is object.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: not a path, PIL image, array or tensor, or ``value`` is not an integer.
        ValueError: an unreadable file, another size than ``size``, no object, several labels and no
            ``value``, colours, fractions, negative numbers, NaN.

    Example:
        >>> read_mask(np.array([[0, 3, 3], [0, 7, 255]]), value=3)
        tensor([[  0,   1,   1],
                [  0,   0, 255]], dtype=torch.uint8)
    """
    label = label_of(mask, argument)
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"value is a {type(value).__name__}; expected an integer label")
        if value < 0:
            raise ValueError(f"value is {value}; labels are not negative")
    if isinstance(mask, str | os.PathLike):
        pixels = _pixels_of_pil(open_pil(mask, label), label)
    elif isinstance(mask, Image.Image):
        pixels = _pixels_of_pil(load_pil(mask, label), label)
    else:
        pixels = channels_last(to_numpy(mask, label), label, first=isinstance(mask, Tensor))
    if size is not None and pixels.shape[:2] != tuple(size):
        raise ValueError(_wrong_size(pixels.shape[:2], tuple(size), label))
    labels = _single_channel(pixels, label, use_alpha=value is None)
    return torch.from_numpy(_pick(labels, value, label))


def _wrong_size(came: tuple[int, ...], expected: tuple[int, ...], label: str) -> str:
    turned = (
        "; it lies on its side: was it drawn on the photo without its EXIF rotation?"
        if came == expected[::-1]
        else ""
    )
    return (
        f"{label} has {came[0]} rows x {came[1]} columns, its image {expected[0]} rows x "
        f"{expected[1]} columns; they must be equal{turned}"
    )


def _pixels_of_pil(image: Image.Image, label: str) -> npt.NDArray[Any]:
    if image.mode in ("RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(
            f"{label} has mode {image.mode}; expected a 1-bit, grey, palette or RGB mask, with or "
            "without alpha"
        )
    pixels = np.asarray(image)
    if image.mode == "PA":
        pixels = pixels[:, :, 0]
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _single_channel(pixels: npt.NDArray[Any], label: str, *, use_alpha: bool) -> npt.NDArray[Any]:
    """Reduce (H, W, C) to the (H, W) labels."""
    check_finite(pixels, label)
    if pixels.shape[2] in (2, 4):
        opaque: npt.NDArray[Any] = pixels[:, :, -1] >= _full_scale(pixels.dtype) / 2
        if use_alpha and opaque.any() and not opaque.all():
            return opaque
        pixels = pixels[:, :, :-1]
    first = pixels[:, :, 0]
    if pixels.shape[2] == 1:
        return first
    if all(np.array_equal(first, pixels[:, :, channel]) for channel in (1, 2)):
        return first
    coloured: npt.NDArray[Any] = np.any(pixels, axis=2)
    colour = pixels[coloured][0]
    if (pixels[coloured] == colour).all() and not coloured.all():
        return coloured
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    raise ValueError(
        f"{label} has {colours} colours; expected labels in one channel (grey or palette), or "
        "black and one colour"
    )


def _full_scale(dtype: np.dtype[Any]) -> float:
    if dtype.kind in "bf":
        return 1.0
    return 65535.0 if dtype.itemsize == 2 else 255.0


def _pick(labels: npt.NDArray[Any], value: int | None, label: str) -> npt.NDArray[Any]:
    """Turn labels into background, object and ignore."""
    if labels.dtype.kind == "f":
        if (labels != np.rint(labels)).any():
            raise ValueError(
                f"{label} holds fractions, {labels.min():.4g}..{labels.max():.4g}; expected labels "
                "(threshold a soft mask first)"
            )
        labels = labels.astype(np.int64)
    elif labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"{label} holds negative labels, from {labels.min()}; expected 0 or more")
    present = _present(labels)
    if value is None:
        value = _only_label(present, label)
    elif value not in present:
        raise ValueError(f"{label} has no pixel of label {value}; it has {_listed(present)}")
    picked: npt.NDArray[Any] = (labels == value).astype(np.uint8)
    if value != IGNORE:
        picked[labels == IGNORE] = IGNORE
    return picked


def _present(labels: npt.NDArray[Any]) -> list[int]:
    # Counting is ten times as fast as sorting the pixels of a large photo.
    if labels.max() < 65536:
        return [int(n) for n in np.flatnonzero(np.bincount(labels.ravel().astype(np.int64)))]
    return [int(n) for n in np.unique(labels)]


def _only_label(present: list[int], label: str) -> int:
    objects = [n for n in present if n != BACKGROUND]
    if objects != [IGNORE]:
        objects = [n for n in objects if n != IGNORE]
    if not objects:
        raise ValueError(f"{label} has no foreground: every pixel is 0")
    if len(objects) > 1:
        soft = (
            "; if it is a black and white mask with soft edges or saved as JPEG, threshold it"
            if len(objects) > _MANY_LABELS
            else ""
        )
        raise ValueError(
            f"{label} has {len(objects)} labels beside background ({_listed(objects)}); pick one "
            f"with value=, for example value={objects[0]}{soft}"
        )
    return objects[0]


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown}, ... {len(numbers) - 10} more"
