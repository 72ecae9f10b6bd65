"""The published training transforms of an image and its masks, defined by a generator bit for bit.

Each takes an image, uint8 (3, H, W), and maps of labels or masks, uint8 (M, H, W), and gives both
at `size` x `size`, or as they are; the image in 0..255, as uint8 unless it was interpolated. 255 in
a map means ignored.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.data.resizing import resize_image, resize_maps
from fastfss.training.recipe import TransformConfig

Pair = tuple[Tensor, Tensor]

# The mean of ImageNet, in 0..255: what PFENet fills borders with.
_MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
# A published cut must show at least this share of the object; it is drawn again so often.
_LEAST_SHARE, _TRIES = 0.85, 31
# OpenCV's Gaussian of 5 pixels without a given width: 0.3 ((5 - 1) / 2 - 1) + 0.8.
_BLUR_SIGMA = 1.1


@dataclass(frozen=True)
class Transform:
    """The transform that a recipe names; see TransformConfig."""

    config: TransformConfig

    def __call__(self, image: Tensor, maps: Tensor, generator: random.Random) -> Pair:
        """Transform both.

        Args:
            image: uint8 (3, H, W).
            maps: uint8 (M, H, W); the first holds the object as 1.
            generator: what is drawn from.
        """
        config = self.config
        if config.kind == "pfenet":
            return self._scaled_and_turned(image, maps, generator)
        if config.kind == "square":
            size = (config.size, config.size)
            image = resize_image(image, size)
            maps = resize_maps(maps, size, config.mask_resize)
        elif config.kind == "crop":
            image, maps = pad(image, maps, config.size, (0.0, 0.0, 0.0))
            image, maps = crop_anywhere(image, maps, config.size, generator)
        return flip(image, maps, config.flip, generator)

    def _scaled_and_turned(self, image: Tensor, maps: Tensor, generator: random.Random) -> Pair:
        config = self.config
        image, maps = scale(image.float(), maps, generator.uniform(*config.scale))
        if generator.random() < 0.5:
            image, maps = rotate(image, maps, generator.uniform(-config.rotate, config.rotate))
        if generator.random() < config.blur:
            image = blur(image)
        image, maps = flip(image, maps, config.flip, generator)
        return crop_object(*pad(image, maps, config.size, _MEAN), config.size, generator)


def is_flipped(probability: float, generator: random.Random) -> bool:
    """Whether to mirror; nothing is drawn if the probability is 0."""
    return bool(probability) and generator.random() < probability


def flip(image: Tensor, maps: Tensor, probability: float, generator: random.Random) -> Pair:
    """Mirror left and right with a probability."""
    if is_flipped(probability, generator):
        return image.flip(-1), maps.flip(-1)
    return image, maps


def pad(image: Tensor, maps: Tensor, size: int, fill: tuple[float, ...]) -> Pair:
    """Grow to at least size x size to the right and below; 255 in the maps."""
    height, width = image.shape[-2:]
    below, right = max(0, size - height), max(0, size - width)
    if not below and not right:
        return image, maps
    wide = image.new_empty((3, height + below, width + right))
    wide[:] = torch.tensor(fill).to(image.dtype)[:, None, None]
    wide[:, :height, :width] = image
    return wide, F.pad(maps, (0, right, 0, below), value=IGNORED)


def crop_anywhere(image: Tensor, maps: Tensor, size: int, generator: random.Random) -> Pair:
    """Cut size x size, uniformly; the object may be lost, as published."""
    height, width = image.shape[-2:]
    left, top = generator.randint(0, width - size), generator.randint(0, height - size)
    window = (..., slice(top, top + size), slice(left, left + size))
    return image[window], maps[window]


def crop_object(image: Tensor, maps: Tensor, size: int, generator: random.Random) -> Pair:
    """Cut size x size so that 85 % of the first map's object are left, if 32 draws find that."""
    wanted = _LEAST_SHARE * int((maps[0] == 1).sum())
    for _ in range(1 + _TRIES):
        pair = crop_anywhere(image, maps, size, generator)
        if int((pair[1][0] == 1).sum()) >= wanted:
            break
    return pair


def scale(image: Tensor, maps: Tensor, factor: float) -> Pair:
    """Bilinear without antialiasing, as OpenCV; maps by nearest neighbour."""
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    scaled = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    return scaled, F.interpolate(maps[None], size, mode="nearest")[0]


def rotate(image: Tensor, maps: Tensor, degrees: float) -> Pair:
    """Turn about the middle; the mean outside of the image, 255 outside of the maps.

    Args:
        image: float (3, H, W).
        maps: uint8 (M, H, W).
        degrees: counter-clockwise.
    """
    height, width = image.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # grid_sample's coordinates run over -1..1 in both axes, hence the aspect.
    matrix = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    mean = torch.tensor(_MEAN)[:, None, None]
    turned = F.grid_sample((image - mean)[None], grid, align_corners=False)[0] + mean
    # Zeros are what lies outside.
    raised = F.grid_sample(maps[None].float() + 1, grid, mode="nearest", align_corners=False)[0]
    return turned, torch.where(raised == 0, IGNORED, raised - 1).to(torch.uint8)


def blur(image: Tensor) -> Tensor:
    """A Gaussian of 5 x 5 pixels; borders are mirrored."""
    places = torch.arange(-2.0, 3.0)
    kernel = torch.exp(-(places**2) / (2 * _BLUR_SIGMA**2))
    weights: list[float] = (kernel / kernel.sum()).tolist()
    for axis in (1, 2):
        spread = (2, 2, 0, 0) if axis == 2 else (0, 0, 2, 2)
        padded = F.pad(image[None], spread, mode="reflect")[0]
        length = image.shape[axis]
        # A sum of shifted images: a convolution's order of sums may depend on the threads.
        shifted = [padded.narrow(axis, shift, length) for shift in range(len(weights))]
        image = torch.zeros_like(image)
        for weight, one in zip(weights, shifted, strict=True):
            image = image + weight * one
    return image
