"""Images and masks brought to a size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.resizing import resize_image, resize_maps


def pixels(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(21, 21), (13, 90), (1, 1), (200, 7)])
def test_images_are_pillows(size: tuple[int, int]) -> None:
    image = pixels(3, 57, 33)
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.BILINEAR)
    assert np.array_equal(resize_image(image, size).permute(1, 2, 0).numpy(), np.asarray(wanted))


@pytest.mark.parametrize("size", [(21, 21), (13, 90), (1, 1)])
def test_masks_take_corners_as_torch_or_centres_as_pillow(size: tuple[int, int]) -> None:
    maps = pixels(2, 57, 33)
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    corners = maps[:, rows * 57 // size[0]][:, :, columns * 33 // size[1]]
    assert torch.equal(resize_maps(maps, size, "torch"), corners)
    centres = maps[:, (2 * rows + 1) * 57 // (2 * size[0])]
    centres = centres[:, :, (2 * columns + 1) * 33 // (2 * size[1])]
    assert torch.equal(resize_maps(maps, size, "pillow"), centres)


def test_what_has_the_size_stays() -> None:
    image = pixels(3, 9, 8)
    assert resize_image(image, (9, 8)) is image
    assert resize_maps(image, (9, 8), "pillow") is image
