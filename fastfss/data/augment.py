"""DENet's joint augmentations of an image and its mask, bit for bit.

A transform takes a PIL image, its mask and the generator it draws from, and returns both. Images
are resized bilinearly, masks by nearest neighbour, as Pillow does it. The published training and
test use `Compose(Square(321), HorizontalFlip())` and draw from Python's global generator.

Examples:
    >>> transform = Compose(Square(33), HorizontalFlip())
    >>> image, mask = Image.new("RGB", (50, 40)), Image.new("L", (50, 40))
    >>> image, mask = transform(image, mask, random.Random(0))
    >>> image.size, mask.size
    ((33, 33), (33, 33))
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from PIL import Image

from fastfss.errors import expected

__all__ = [
    "CenterCrop",
    "Compose",
    "HorizontalFlip",
    "JointTransform",
    "LongSide",
    "RandomArea",
    "RandomCrop",
    "RandomScale",
    "RandomStretch",
    "Square",
    "VerticalFlip",
]

Pair = tuple[Image.Image, Image.Image]

# RandomScale leaves images alone that these factors would hardly change.
_UNCHANGED = (1.0, 1.2)
_TRIES = 10


class JointTransform(ABC):
    """What all transforms share: the check that image and mask have one size."""

    def __call__(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        """Transform both.

        Args:
            image: any mode that Pillow resizes bilinearly; RGB or L.
            mask: of the image's size, mode L or P.
            generator: what is drawn from.

        Returns:
            Image and mask.

        Raises:
            ValueError: their sizes differ.
        """
        if image.size != mask.size:
            raise expected("mask", f"the image's size {image.size}", str(mask.size))
        return self._apply(image, mask, generator)

    @abstractmethod
    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair: ...


@dataclass(frozen=True, init=False)
class Compose(JointTransform):
    """Transforms one after the other."""

    transforms: tuple[JointTransform, ...]

    def __init__(self, *transforms: JointTransform) -> None:
        object.__setattr__(self, "transforms", transforms)

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        for transform in self.transforms:
            image, mask = transform(image, mask, generator)
        return image, mask


@dataclass(frozen=True)
class _Sized(JointTransform):
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise expected("size", "at least 1 pixel", str(self.size))


@dataclass(frozen=True)
class _Flip(JointTransform):
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise expected("probability", "0..1", str(self.probability))

    def _flip(self, direction: Image.Transpose, pair: Pair, generator: random.Random) -> Pair:
        if generator.random() < self.probability:
            return pair[0].transpose(direction), pair[1].transpose(direction)
        return pair


class HorizontalFlip(_Flip):
    """Mirror left and right with a probability."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        return self._flip(Image.Transpose.FLIP_LEFT_RIGHT, (image, mask), generator)


class VerticalFlip(_Flip):
    """Mirror top and bottom with a probability."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        return self._flip(Image.Transpose.FLIP_TOP_BOTTOM, (image, mask), generator)


class Square(_Sized):
    """Resize to size x size; the aspect is lost."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        return _resize(image, mask, self.size, self.size)


class LongSide(_Sized):
    """Resize so that the longer side becomes `size`; the other is rounded down."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        width, height = image.size
        longer = max(width, height)
        return _resize(image, mask, self.size * width // longer, self.size * height // longer)


class CenterCrop(_Sized):
    """Cut size x size from the middle; what lies outside the image is 0."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        left, top = (round((side - self.size) / 2) for side in image.size)
        return _crop(image, mask, left, top, self.size, self.size)


class RandomCrop(_Sized):
    """Cut size x size anywhere; an image with a smaller side is stretched to that instead."""

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        width, height = image.size
        if min(width, height) < self.size:
            return _resize(image, mask, self.size, self.size)
        left = generator.randint(0, width - self.size)
        top = generator.randint(0, height - self.size)
        return _crop(image, mask, left, top, self.size, self.size)


@dataclass(frozen=True)
class RandomScale(JointTransform):
    """Resize by one factor, uniform in low..high; by one of 1 to 1.2 not at all, as published."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise expected("low, high", "0 < low <= high", f"{self.low}, {self.high}")

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        factor = generator.uniform(self.low, self.high)
        if _UNCHANGED[0] <= factor <= _UNCHANGED[1]:
            return image, mask
        width, height = (int(side * factor) for side in image.size)
        return _resize(image, mask, width, height)


class RandomStretch(_Sized):
    """Stretch each side by a factor in 0.5..2, then `LongSide`, then `RandomCrop`.

    The crop stretches the shorter side to `size`, so that what remains is a change of aspect.
    """

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        width, height = (int(side * generator.uniform(0.5, 2)) for side in image.size)
        stretched = _resize(image, mask, width, height)
        scaled = LongSide(self.size)(*stretched, generator)
        return RandomCrop(self.size)(*scaled, generator)


class RandomArea(_Sized):
    """Cut 0.45..1 of the area at an aspect of 0.5..2 and resize it to size x size.

    After ten cuts that did not fit: `LongSide`, then `CenterCrop`.
    """

    def _apply(self, image: Image.Image, mask: Image.Image, generator: random.Random) -> Pair:
        full_width, full_height = image.size
        for _ in range(_TRIES):
            area = generator.uniform(0.45, 1) * (full_width * full_height)
            aspect = generator.uniform(0.5, 2)
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if generator.random() < 0.5:
                width, height = height, width
            if width <= full_width and height <= full_height:
                left = generator.randint(0, full_width - width)
                top = generator.randint(0, full_height - height)
                cut = _crop(image, mask, left, top, width, height)
                return _resize(*cut, self.size, self.size)
        scaled = LongSide(self.size)(image, mask, generator)
        return CenterCrop(self.size)(*scaled, generator)


def _resize(image: Image.Image, mask: Image.Image, width: int, height: int) -> Pair:
    size = (max(width, 1), max(height, 1))
    bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    return image.resize(size, bilinear), mask.resize(size, nearest)


def _crop(
    image: Image.Image, mask: Image.Image, left: int, top: int, width: int, height: int
) -> Pair:
    box = (left, top, left + width, top + height)
    return image.crop(box), mask.crop(box)
