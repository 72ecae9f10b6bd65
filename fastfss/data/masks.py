"""Masks in whatever form a user holds them, as object, background and ignored pixels."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.pixels import ImageLike, Pixels, check_finite, label_of, read_pixels
from fastfss.errors import expected, expected_kind

MaskLike: TypeAlias = ImageLike
"""What `read_mask` takes: the same kinds of things as `read_image`."""

BACKGROUND, IGNORED = 0, 255

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

    Examples:
        >>> read_mask(np.array([[0, 3, 3], [0, 7, 255]]), value=3)
        tensor([[  0,   1,   1],
                [  0,   0, 255]], dtype=torch.uint8)
    """
    label = label_of(mask, argument)
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise expected_kind("value", "an integer label", repr(value))
        if value < 0:
            raise expected("value", "a label of 0 or more", str(value))
    labels = _single_channel(_sized(mask, size, label), label, use_alpha=value is None)
    return torch.from_numpy(_pick(_whole(labels, label), value, label))


def read_label_map(
    labels: MaskLike, *, size: tuple[int, int] | None = None, argument: str = "labels"
) -> Tensor:
    """Read a mask of several classes as it is; see `read_mask` for what is taken.

    Args:
        labels: the label map.
        size: (H, W) it must have, its image's.
        argument: what to call it in error messages.

    Returns:
        (H, W) int64 on the CPU, the labels that it holds.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `read_mask`, but any labels will do.

    Examples:
        >>> read_label_map(np.array([[0, 3, 3], [0, 7, 255]]))
        tensor([[  0,   3,   3],
                [  0,   7, 255]])
    """
    label = label_of(labels, argument)
    whole = _whole(_single_channel(_sized(labels, size, label), label, use_alpha=False), label)
    return torch.from_numpy(whole.astype(np.int64))


def _sized(mask: MaskLike, size: tuple[int, int] | None, label: str) -> Pixels:
    """The pixels of a mask, (H, W, C); ValueError if it has not the size."""
    pixels = read_pixels(mask, label, _from_pil)
    if size is not None and pixels.shape[:2] != tuple(size):
        raise _wrong_size(label, pixels.shape[:2], tuple(size))
    return pixels


def _wrong_size(label: str, came: tuple[int, ...], wanted: tuple[int, ...]) -> ValueError:
    turned = "; was it drawn on the photo without its EXIF rotation?" * (came == wanted[::-1])
    return expected(
        label,
        f"{wanted[0]} rows x {wanted[1]} columns as its image has",
        f"{came[0]} rows x {came[1]} columns{turned}",
    )


def _from_pil(image: Image.Image, label: str) -> Pixels:
    if image.mode in ("RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        wanted = "a 1-bit, grey, palette or RGB mask, with or without alpha"
        raise expected(label, wanted, f"mode {image.mode}")
    pixels = np.asarray(image)
    if image.mode == "PA":
        pixels = pixels[:, :, 0]
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _single_channel(pixels: Pixels, label: str, *, use_alpha: bool) -> npt.NDArray[Any]:
    """Reduce (H, W, C) to the (H, W) labels."""
    check_finite(pixels, label)
    if pixels.shape[2] in (2, 4):
        opaque: npt.NDArray[Any] = pixels[:, :, -1] >= _full_scale(pixels.dtype) / 2
        if use_alpha and opaque.any() and not opaque.all():
            return opaque
        pixels = pixels[:, :, :-1]
    first = pixels[:, :, 0]
    if all(np.array_equal(first, pixels[:, :, n]) for n in range(1, pixels.shape[2])):
        return first
    coloured: npt.NDArray[Any] = np.any(pixels, axis=2)
    colour = pixels[coloured][0]
    if (pixels[coloured] == colour).all() and not coloured.all():
        return coloured
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    wanted = "labels in one channel (grey or palette), or black and one colour"
    raise expected(label, wanted, f"RGB with {colours} colour{'s' * (colours > 1)}")


def _full_scale(dtype: np.dtype[Any]) -> float:
    if dtype.kind in "bf":
        return 1.0
    return 65535.0 if dtype.itemsize == 2 else 255.0


def _whole(labels: npt.NDArray[Any], label: str) -> npt.NDArray[Any]:
    """Labels of any kind of number as integers of 0 or more."""
    if labels.dtype.kind == "f":
        if (labels != np.rint(labels)).any():
            came = (
                f"fractions in {labels.min():.4g}..{labels.max():.4g}; threshold a soft mask first"
            )
            raise expected(label, "whole-numbered labels", came)
        labels = labels.astype(np.int64)
    elif labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise expected(label, "labels of 0 or more", str(labels.min()))
    return labels


def _pick(labels: npt.NDArray[Any], value: int | None, label: str) -> npt.NDArray[Any]:
    """Turn labels into background, object and ignore."""
    present = _present(labels)
    if value is None:
        value = _only_label(present, label)
    elif value not in present:
        raise expected(label, f"pixels of label {value}", f"only {_listed(present)}")
    picked: npt.NDArray[Any] = (labels == value).astype(np.uint8)
    if value != IGNORED:
        picked[labels == IGNORED] = IGNORED
    return picked


def _present(labels: npt.NDArray[Any]) -> list[int]:
    # Counting is ten times as fast as sorting the pixels of a large photo.
    if labels.max() < 65536:
        return [int(n) for n in np.flatnonzero(np.bincount(labels.ravel().astype(np.int64)))]
    return [int(n) for n in np.unique(labels)]


def _only_label(present: list[int], label: str) -> int:
    objects = [n for n in present if n != BACKGROUND]
    if objects != [IGNORED]:
        objects = [n for n in objects if n != IGNORED]
    if not objects:
        raise expected(label, "some foreground", "0 in every pixel")
    if len(objects) > 1:
        soft = (
            "; if it is black and white with soft edges, or was saved as JPEG, threshold it"
            if len(objects) > _MANY_LABELS
            else ""
        )
        wanted = f"one label beside background, or a choice of value (such as {objects[0]})"
        raise expected(label, wanted, f"{len(objects)} labels: {_listed(objects)}{soft}")
    return objects[0]


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
