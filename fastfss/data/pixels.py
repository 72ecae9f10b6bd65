"""What reading images and reading masks share: from any source to an array of pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastfss.errors import expected, expected_kind

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor"
"""What `read_image` takes: a path, an image of Pillow, an array, or a tensor."""
Pixels: TypeAlias = npt.NDArray[Any]  # (H, W, C)


def label_of(source: object, argument: str) -> str:
    """Return what to call an input in error messages: the argument's name, and its file's."""
    return (
        f"{argument} {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else argument
    )


def read_pixels(
    source: object, label: str, from_pil: Callable[[Image.Image, str], Pixels]
) -> Pixels:
    """Return the pixels of a file, PIL image, array or tensor.

    Args:
        source: a path, PIL image, array or tensor.
        label: what to call it in error messages.
        from_pil: turns a decoded PIL image into pixels; gets ``label`` too.

    Returns:
        (H, W, C) of real numbers, perhaps sharing memory with the source.
    """
    if isinstance(source, str | os.PathLike):
        return from_pil(_open(source, label), label)
    if isinstance(source, Image.Image):
        with decoding(label):
            image = _upright(source)
        return from_pil(image, label)
    return _channels_last(_numbers(source, label), label, first=isinstance(source, Tensor))


def check_finite(pixels: Pixels, label: str) -> None:
    """Raise a ValueError that names ``label`` if a float array holds NaN or infinity."""
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
        kind = "NaN" if np.isnan(pixels).any() else "infinite"
        raise expected(label, "finite numbers", f"{int((~finite).sum())} {kind} values")


def _open(path: str | os.PathLike[str], label: str) -> Image.Image:
    with decoding(label):
        if Path(path).is_dir():
            raise IsADirectoryError("it is a folder")
        with Image.open(path) as image:
            return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    image.load()
    return ImageOps.exif_transpose(image)


@contextmanager
def decoding(label: str) -> Iterator[None]:
    """Turn whatever happens while a file is decoded into one error that names ``label``."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{label}: no such file") from None
    except PermissionError:
        raise PermissionError(f"{label}: no permission to read it") from None
    except UnidentifiedImageError:
        raise ValueError(f"{label}: not an image that Pillow can read") from None
    except MemoryError:
        raise
    except Exception as error:
        # On damaged data Pillow's decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{label}: cannot be read ({error})") from error


def _numbers(source: object, label: str) -> npt.NDArray[Any]:
    if isinstance(source, Tensor):
        if source.layout != torch.strided or source.is_quantized or source.is_complex():
            came = f"{source.dtype} with layout {source.layout}"
            raise expected_kind(label, "a dense tensor of real numbers", came)
        tensor = source.detach().cpu()
        # NumPy has no bfloat16.
        array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    elif isinstance(source, np.ndarray):
        array = source
    else:
        wanted = "a path, a PIL image, a NumPy array or a tensor"
        raise expected_kind(label, wanted, type(source).__name__)
    if array.dtype.kind not in "buif":
        raise expected_kind(label, "integers, floats or bool", str(array.dtype))
    return array


def _channels_last(array: npt.NDArray[Any], label: str, *, first: bool) -> Pixels:
    """Return (H, W, C) from (H, W), (H, W, C) or (C, H, W).

    Args:
        array: the numbers.
        label: what to call them in error messages.
        first: which order to take where both fit: channels first, or last.
    """
    own, other = (0, 2) if first else (2, 0)
    if array.ndim == 2:
        pixels = array[:, :, None]
    elif array.ndim == 3 and array.shape[own] in (1, 3, 4):
        pixels = np.moveaxis(array, own, 2)
    elif array.ndim == 3 and array.shape[other] in (1, 3, 4):
        pixels = np.moveaxis(array, other, 2)
    else:
        order = "(C, H, W)" if first else "(H, W, C)"
        batch = "; give one image, not a batch" if array.ndim == 4 else ""
        raise expected(
            label, f"(H, W) or {order} with C = 1, 3 or 4", f"{tuple(array.shape)}{batch}"
        )
    if 0 in pixels.shape:
        raise expected(label, "at least one pixel", f"shape {tuple(array.shape)}")
    return pixels
