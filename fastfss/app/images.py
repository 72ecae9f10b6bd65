"""Images that clients send: their size is read before they are unpacked."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from fastfss.data import read_image
from fastfss.data.pixels import decoding
from fastfss.video.limits import Limits

# What browsers make; Pillow's many other decoders are not offered to strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def read_sent_image(data: bytes, limits: Limits, argument: str) -> Tensor:
    """uint8 (3, H, W) of an image's bytes.

    Raises:
        ValueError: no image, of another format, or larger than the limits; `argument` is named.
    """
    with decoding(argument), Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        width, height = opened.size
        limits.check_size((height, width), argument)
        return read_image(opened, argument=argument)


def jpeg(pixels: Tensor, height: int | None = None, quality: int = 90) -> bytes:
    """A JPEG of uint8 (3, H, W), at most so high."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    if height is not None and height < image.height:
        width = max(1, round(image.width * height / image.height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
