"""Images in whatever form a user holds them, as one kind of tensor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.masks import MaskLike, read_label_map, read_mask
from fastfss.data.pixels import ImageLike, Pixels, check_finite, label_of, read_pixels
from fastfss.errors import expected

__all__ = ["ImageLike", "MaskLike", "read_image", "read_label_map", "read_mask"]

# A float that rounds to 0..255 is in range: bicubic resizing overshoots [0, 1] by rounding errors.
_FLOAT_SLACK = 0.5 / 255


def read_image(image: ImageLike, *, argument: str = "image") -> Tensor:
    """Read an image from a file, a PIL image, an array or a tensor.

    Files and PIL images: any mode Pillow converts to RGB; the EXIF orientation is applied, alpha is
    dropped, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.

    Arrays are (H, W) or (H, W, C), tensors (H, W) or (C, H, W), with C = 1, 3 or 4 (alpha is
    dropped). If the channel axis of that order has none of these lengths and the other order fits,
    the other order is taken. Values: uint8; bool; floats in [0, 1]; uint16, scaled by 255 / 65535;
    any other integers in 0..255.

    Args:
        image: the image.
        argument: what to call it in error messages.

    Returns:
        (3, H, W) uint8 RGB on the CPU, in memory of its own.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: not a path, PIL image, array or tensor, or numbers of a wrong kind.
        ValueError: an unreadable file, a wrong shape, or values out of range, infinite or NaN.

    Examples:
        >>> read_image(np.full((2, 4), 0.5), argument="query")[:, 0, 0]
        tensor([128, 128, 128], dtype=torch.uint8)
    """
    label = label_of(image, argument)
    grey_or_rgb = _to_eight_bits(read_pixels(image, label, _from_pil), label)
    rgb = np.broadcast_to(grey_or_rgb[:, :, :3], (*grey_or_rgb.shape[:2], 3))
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C", copy=True))


def _from_pil(image: Image.Image, label: str) -> Pixels:
    if image.mode.startswith("I"):
        # "I" is 32 bits, but what it holds is nearly always a 16-bit PNG or TIFF.
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise expected(label, "16-bit values, 0..65535", f"{wide.min()}..{wide.max()}")
        return wide.astype(np.uint16)[:, :, None]
    if image.mode == "F":
        return np.asarray(image)[:, :, None]
    try:
        # Pillow has no direct way from premultiplied alpha, and warns about a transparent palette.
        if image.mode in ("La", "RGBa") or "transparency" in image.info:
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise expected(label, "a mode that Pillow converts to RGB", image.mode) from error


def _to_eight_bits(pixels: Pixels, label: str) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        black_and_white: Pixels = pixels * np.uint8(255)
        return black_and_white
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        # 255 / 65535 is 1 / 257; adding half of it rounds.
        pixels = (pixels.astype(np.uint32) + 128) // 257
        return pixels.astype(np.uint8)
    check_finite(pixels, label)
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            raise expected(label, "floats in 0..1", f"{low:.4g}..{high:.4g} ({_hint(low, high)})")
        pixels = np.rint(np.clip(pixels.astype(np.float32), 0, 1) * 255)
    elif low < 0 or high > 255:
        wanted = "integers in 0..255, or uint16 for 16-bit images"
        raise expected(label, wanted, f"{pixels.dtype} in {low}..{high}")
    return pixels.astype(np.uint8)


def _hint(low: float, high: float) -> str:
    if low < 0:
        return "undo the normalisation"
    return "divide by 255, or give uint8" if high <= 255 else "scale them"
