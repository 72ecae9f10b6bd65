"""Images in whatever form a user holds them, as one kind of tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor"

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

    Example:
        >>> read_image(np.full((2, 4), 0.5), argument="query")[:, 0, 0]
        tensor([128, 128, 128], dtype=torch.uint8)
    """
    label = label_of(image, argument)
    if isinstance(image, str | os.PathLike):
        pixels = _pixels_of_pil(open_pil(image, label), label)
    elif isinstance(image, Image.Image):
        pixels = _pixels_of_pil(load_pil(image, label), label)
    else:
        pixels = channels_last(to_numpy(image, label), label, first=isinstance(image, Tensor))
    grey_or_rgb = _to_eight_bits(pixels, label)
    rgb = np.broadcast_to(grey_or_rgb[:, :, :3], (*grey_or_rgb.shape[:2], 3))
    return torch.from_numpy(np.array(rgb.transpose(2, 0, 1), order="C", copy=True))


def label_of(source: object, argument: str) -> str:
    """Return what to call an input in error messages: the argument's name, and its file's."""
    return (
        f"{argument} {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else argument
    )


def open_pil(path: str | os.PathLike[str], label: str) -> Image.Image:
    """Open and decode an image file, turned upright; errors name ``label``."""
    with _readable(label):
        if Path(path).is_dir():
            raise IsADirectoryError("it is a folder")
        with Image.open(path) as image:
            return _upright(image)


def load_pil(image: Image.Image, label: str) -> Image.Image:
    """Decode a PIL image and turn it upright; errors name ``label``."""
    with _readable(label):
        return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    image.load()
    return ImageOps.exif_transpose(image)


@contextmanager
def _readable(label: str) -> Iterator[None]:
    """Turn whatever happens while a file is decoded into one error that names ``label``."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{label} does not exist") from None
    except PermissionError:
        raise PermissionError(f"{label} cannot be read: permission denied") from None
    except UnidentifiedImageError:
        raise ValueError(f"{label} is not an image that Pillow can read") from None
    except MemoryError:
        raise
    except Exception as error:
        # On damaged data Pillow's decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{label} cannot be read: {error}") from error


def to_numpy(source: object, label: str) -> npt.NDArray[Any]:
    """Return the numbers of an array or tensor; errors name ``label``."""
    if isinstance(source, Tensor):
        if source.layout != torch.strided or source.is_quantized or source.is_complex():
            raise TypeError(
                f"{label} is a {source.dtype} tensor with layout {source.layout}; expected a dense "
                "tensor of real numbers"
            )
        tensor = source.detach().cpu()
        # NumPy has no bfloat16.
        array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    elif isinstance(source, np.ndarray):
        array = source
    else:
        raise TypeError(
            f"{label} is a {type(source).__name__}; expected a path, a PIL image, a NumPy array or "
            "a tensor"
        )
    if array.dtype.kind not in "buif":
        raise TypeError(f"{label} holds {array.dtype}; expected integers, floats or bool")
    return array


def channels_last(array: npt.NDArray[Any], label: str, *, first: bool) -> npt.NDArray[Any]:
    """Return (H, W, C) from (H, W), (H, W, C) or (C, H, W).

    Args:
        array: the numbers.
        label: what to call them in error messages.
        first: which order to take where both fit: channels first, or last.

    Returns:
        A view, (H, W, C) with C = 1, 3 or 4.
    """
    order = "(C, H, W)" if first else "(H, W, C)"
    if array.ndim == 2:
        pixels = array[:, :, None]
    elif array.ndim == 3 and array.shape[own := 0 if first else 2] in (1, 3, 4):
        pixels = np.moveaxis(array, own, 2)
    elif array.ndim == 3 and array.shape[other := 2 if first else 0] in (1, 3, 4):
        pixels = np.moveaxis(array, other, 2)
    else:
        batch = "; give one image, not a batch" if array.ndim == 4 else ""
        raise ValueError(
            f"{label} has shape {tuple(array.shape)}; expected (H, W) or {order} with 1, 3 or 4 "
            f"channels{batch}"
        )
    if 0 in pixels.shape:
        raise ValueError(f"{label} has shape {tuple(array.shape)}: no pixels")
    return pixels


def check_finite(array: npt.NDArray[Any], label: str) -> None:
    """Raise a ValueError that names ``label`` if a float array holds NaN or infinity."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        kind = "NaN" if np.isnan(array).any() else "infinite"
        raise ValueError(f"{label} holds {int((~finite).sum())} {kind} values")


def _pixels_of_pil(image: Image.Image, label: str) -> npt.NDArray[Any]:
    if image.mode.startswith("I"):
        # "I" is 32 bits, but what it holds is nearly always a 16-bit PNG or TIFF.
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(
                f"{label} has 32-bit values {wide.min()}..{wide.max()}; expected 16 bits, 0..65535"
            )
        return wide.astype(np.uint16)[:, :, None]
    if image.mode == "F":
        return np.asarray(image)[:, :, None]
    try:
        # Pillow has no direct way from premultiplied alpha, and warns about a transparent palette.
        if image.mode in ("La", "RGBa") or "transparency" in image.info:
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{label} has mode {image.mode}: {error}") from error


def _to_eight_bits(pixels: npt.NDArray[Any], label: str) -> npt.NDArray[Any]:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        black_and_white: npt.NDArray[Any] = pixels * np.uint8(255)
        return black_and_white
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        # 255 / 65535 is 1 / 257; adding half of it rounds.
        pixels = (pixels.astype(np.uint32) + 128) // 257
        return pixels.astype(np.uint8)
    check_finite(pixels, label)
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f":
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            hint = (
                "undo the normalisation"
                if low < 0
                else "divide by 255, or give uint8"
                if high <= 255
                else "scale them"
            )
            raise ValueError(f"{label} holds floats {low:.4g}..{high:.4g}; expected 0..1 ({hint})")
        pixels = np.rint(np.clip(pixels.astype(np.float32), 0, 1) * 255)
        return pixels.astype(np.uint8)
    if low < 0 or high > 255:
        raise ValueError(
            f"{label} holds {pixels.dtype} values {low}..{high}; expected 0..255, or uint16 for "
            "16-bit images"
        )
    return pixels.astype(np.uint8)
