from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.training.recipe import TransformConfig
from fastfss.training.transforms import (
    Transform,
    blur,
    crop_object,
    pad,
    rotate,
    scale,
)

SIZES = [(40, 56), (57, 33), (16, 90)]


def picture(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red channel says where the object is, and the mask of the object."""
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(0, 200, (3, height, width), generator=generator, dtype=torch.uint8)
    mask = torch.zeros((1, height, width), dtype=torch.uint8)
    mask[0, height // 4 : height // 2, width // 4 : width // 2] = 1
    image[0] = 255 * mask[0]
    return image, mask


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["square", "crop", "pfenet"])
def test_image_and_mask_go_the_same_way(kind: Any, size: tuple[int, int]) -> None:
    transform = Transform(TransformConfig(kind=kind, size=49, flip=0.5))
    found = 0
    for seed in range(8):
        image, maps = transform(*picture(*size), random.Random(seed))
        assert image.shape == (3, 49, 49) and maps.shape == (1, 49, 49)
        assert maps.dtype == torch.uint8 and set(maps.unique().tolist()) <= {0, 1, 255}
        red, inside = image[0].float(), maps[0] == 1
        if kind != "crop":
            assert inside.any()
        # Borders are blurred, and filled with the mean.
        assert ((red > 250) <= (inside | (maps[0] == 255))).float().mean() > 0.97
        assert ((red < 5) & inside).float().mean() < 0.03
        found += bool(inside.any())
    assert found


@pytest.mark.parametrize("kind", ["square", "crop", "pfenet"])
def test_the_generator_decides_every_bit(kind: Any) -> None:
    transform = Transform(TransformConfig(kind=kind, size=49, flip=0.5))

    def results(seed: int) -> list[Tensor]:
        torch.manual_seed(random.randrange(1 << 30))
        return list(transform(*picture(57, 73), random.Random(seed)))

    for one, again in zip(results(3), results(3), strict=True):
        assert torch.equal(one, again)
    others = [results(seed)[0] for seed in range(6)]
    assert any(not torch.equal(others[0], other) for other in others[1:])


def test_small_images_are_padded_with_black_and_ignored_pixels() -> None:
    image, maps = picture(16, 90)
    wide, grown = pad(image, maps, 49, (0.0, 0.0, 0.0))
    assert wide.shape == (3, 49, 90)
    assert torch.equal(wide[:, :16], image) and wide[:, 16:].eq(0).all()
    assert torch.equal(grown[:, :16], maps) and grown[:, 16:].eq(255).all()


def test_a_cut_keeps_most_of_the_object() -> None:
    image, maps = torch.zeros(3, 200, 200), torch.zeros((1, 200, 200), dtype=torch.uint8)
    maps[0, 60:100, 60:100] = 1
    kept = [int(crop_object(image, maps, 110, random.Random(seed))[1].sum()) for seed in range(200)]
    assert sum(count >= 0.85 * 1600 for count in kept) > 195


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    image, maps = picture(40, 40)
    turned, moved = rotate(image.float(), maps, 90.0)
    assert torch.equal(moved, maps.rot90(1, (1, 2)))
    torch.testing.assert_close(turned, image.float().rot90(1, (1, 2)), atol=1e-2, rtol=0)


def test_what_turns_in_from_outside_is_mean_and_ignored() -> None:
    image, maps = picture(40, 56)
    turned, moved = rotate(image.float(), maps, 10.0)
    assert moved[0, 0, 0] == 255
    torch.testing.assert_close(turned[:, 0, 0] / 255, torch.tensor([0.485, 0.456, 0.406]))
    assert moved[0, 20, 28] != 255


def test_blur_keeps_the_mean_and_is_a_normalised_gaussian() -> None:
    point = torch.zeros(3, 9, 9)
    point[:, 4, 4] = 1
    spread = blur(point)[0]
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    assert spread[2:7, 2:7].gt(0).all() and spread[:2].eq(0).all()
    ratio = torch.exp(torch.tensor(-1 / (2 * 1.1**2)))
    torch.testing.assert_close(spread[4, 5] / spread[4, 4], ratio)


def test_scaling_rounds_the_sides() -> None:
    image, maps = scale(
        *(one.float() if one.shape[0] == 3 else one for one in picture(41, 57)), 1.1
    )
    assert image.shape == (3, 45, 63) and maps.shape == (1, 45, 63)
