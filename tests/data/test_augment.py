from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from fastfss.data import augment
from fastfss.data.augment import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    LongSide,
    RandomArea,
    RandomCrop,
    RandomScale,
    RandomStretch,
    Square,
    VerticalFlip,
)

TRANSFORMS = {
    "compose": Compose(Square(31), HorizontalFlip()),
    "flip": HorizontalFlip(),
    "vertical flip": VerticalFlip(),
    "square": Square(40),
    "long side": LongSide(50),
    "center": CenterCrop(33),
    "crop": RandomCrop(30),
    "scale": RandomScale(0.5, 1.5),
    "stretch": RandomStretch(35),
    "area": RandomArea(35),
}
each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def pair(width: int = 57, height: int = 44) -> tuple[Image.Image, Image.Image]:
    """An image whose pixels say where they are (red: column, green: row), and a mask likewise."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([columns, rows, columns * 0], 2).astype(np.uint8)
    return Image.fromarray(image), Image.fromarray((columns // 8 + 8 * (rows // 8)).astype("uint8"))


def arrays(*images: Image.Image) -> list[np.ndarray]:
    return [np.array(image) for image in images]


@each_transform
def test_the_generator_decides_everything(transform):
    first = arrays(*transform(*pair(), random.Random(3)))
    random.seed(8)
    again = arrays(*transform(*pair(), random.Random(3)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    random_value = random.random()
    random.seed(8)
    assert random_value == random.random(), "the global generator was used"


@each_transform
@pytest.mark.parametrize("size", [(57, 44), (44, 57), (9, 50), (1, 1)], ids=str)
def test_image_and_mask_stay_together(transform, size):
    for seed in range(8):
        image, mask = transform(*pair(*size), random.Random(seed))
        assert image.size == mask.size and (image.mode, mask.mode) == ("RGB", "L")
        assert set(np.unique(mask)) <= set(np.unique(np.array(pair(*size)[1]))) | {0}


@each_transform
def test_palette_masks_keep_their_indices(transform):
    image, mask = pair()
    palette = mask.copy()
    palette.putpalette([value for n in range(256) for value in (255 - n, n, 7)])
    wanted = transform(image, mask, random.Random(1))[1]
    ours = transform(image, palette, random.Random(1))[1]
    assert ours.mode == "P" and np.array_equal(np.array(ours), np.array(wanted))


@each_transform
def test_a_mask_of_another_size_is_an_error(transform):
    image, mask = pair()
    with pytest.raises(ValueError, match=r"mask: expected the image's size \(57, 44\), got \(44"):
        transform(image, mask.transpose(Image.Transpose.ROTATE_90), random.Random(0))


@pytest.mark.parametrize(
    ("flip", "axis"), [(HorizontalFlip, 1), (VerticalFlip, 0)], ids=["left-right", "top-bottom"]
)
def test_flips_happen_below_their_probability(flip, axis):
    image, mask = pair()
    for seed in range(10):
        drawn = random.Random(seed).random()
        for probability in (0.0, drawn, drawn + 1e-9, 1.0):
            ours = arrays(*flip(probability)(image, mask, random.Random(seed)))
            for one, source in zip(ours, arrays(image, mask), strict=True):
                wanted = np.flip(source, axis) if drawn < probability else source
                assert np.array_equal(one, wanted)


@pytest.mark.parametrize("size", [1, 20, 44])
def test_a_random_crop_draws_the_column_then_the_row(size):
    for seed in range(10):
        generator = random.Random(seed)
        left, top = generator.randint(0, 57 - size), generator.randint(0, 44 - size)
        ours, mask = arrays(*RandomCrop(size)(*pair(), random.Random(seed)))
        source, source_mask = arrays(*pair())
        window = np.s_[top : top + size, left : left + size]
        assert np.array_equal(ours, source[window]) and np.array_equal(mask, source_mask[window])


def test_a_crop_larger_than_a_side_stretches_and_draws_nothing():
    generator = random.Random(0)
    state = generator.getstate()
    ours = arrays(*RandomCrop(45)(*pair(), generator))
    wanted = arrays(*Square(45)(*pair(), generator))
    assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert generator.getstate() == state


@pytest.mark.parametrize(
    ("size", "wanted"), [((57, 44), (25, 19)), ((44, 57), (19, 25)), ((200, 1), (25, 1))]
)
def test_the_other_side_is_rounded_down_but_never_to_nothing(size, wanted):
    assert LongSide(25)(*pair(*size), random.Random(0))[0].size == wanted


def test_a_center_crop_beyond_the_image_is_black():
    image, mask = arrays(*CenterCrop(60)(*pair(), random.Random(0)))
    assert image.shape == (60, 60, 3)
    rows, _ = np.nonzero(mask)
    assert rows.min() >= 8 and rows.max() < 8 + 44 and not mask[:8].any() and not mask[52:].any()


def test_random_scale_leaves_factors_of_1_to_1_2_alone():
    unchanged = set()
    for seed in range(60):
        factor = random.Random(seed).uniform(0.5, 1.5)
        size = RandomScale(0.5, 1.5)(*pair(), random.Random(seed))[0].size
        unchanged.add(1 <= factor <= 1.2)
        assert size == ((57, 44) if 1 <= factor <= 1.2 else (int(57 * factor), int(44 * factor)))
    assert unchanged == {True, False}


def test_random_stretch_is_stretch_then_scale_then_crop():
    for seed in range(6):
        generator = random.Random(seed)
        width, height = (int(side * generator.uniform(0.5, 2)) for side in (57, 44))
        image, mask = pair()
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        scaled = LongSide(35)(image, mask, generator)
        wanted = arrays(*RandomCrop(35)(*scaled, generator))
        ours = arrays(*RandomStretch(35)(*pair(), random.Random(seed)))
        assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_random_area_falls_back_to_the_middle_after_ten_tries():
    class Full(random.Random):
        """Draws the full area at twice the height: no cut fits."""

        def uniform(self, a, b):
            return 1.0 if b == 1 else 2.0

        def random(self):
            drawn.append(1)
            return 0.9

    drawn: list[int] = []
    ours = arrays(*RandomArea(35)(*pair(), Full()))
    scaled = LongSide(35)(*pair(), random.Random(0))
    wanted = arrays(*CenterCrop(35)(*scaled, random.Random(0)))
    assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))
    assert len(drawn) == 10


def test_random_area_may_take_the_whole_image():
    class Whole(random.Random):
        def uniform(self, a, b):
            return 1.0 if b == 1 else 57 / 44

        def random(self):
            return 0.9

    ours = arrays(*RandomArea(35)(*pair(), Whole(0)))
    wanted = arrays(*Square(35)(*pair(), random.Random(0)))
    assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_compose_passes_one_generator_through():
    generator = random.Random(4)
    flipped = HorizontalFlip()(*Square(20)(*pair(), generator), generator)
    wanted = arrays(*VerticalFlip()(*flipped, generator))
    ours = arrays(*Compose(Square(20), HorizontalFlip(), VerticalFlip())(*pair(), random.Random(4)))
    assert all(np.array_equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_transforms_are_values():
    assert Compose(Square(3), HorizontalFlip()) == Compose(Square(3), HorizontalFlip(0.5))
    assert Square(3) != CenterCrop(3) and hash(RandomCrop(3)) == hash(RandomCrop(3))
    assert repr(Compose(Square(3))) == "Compose(transforms=(Square(size=3),))"
    assert all(hasattr(augment, name) for name in augment.__all__)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(0), "size: expected at least 1 pixel, got 0"),
        (lambda: RandomArea(-3), "size: expected at least 1 pixel, got -3"),
        (lambda: HorizontalFlip(1.5), r"probability: expected 0\.\.1, got 1.5"),
        (lambda: VerticalFlip(float("nan")), r"probability: expected 0\.\.1, got nan"),
        (lambda: RandomScale(0, 1), "low, high: expected 0 < low <= high, got 0, 1"),
        (lambda: RandomScale(2, 1), "low, high: expected 0 < low <= high, got 2, 1"),
    ],
)
def test_bad_parameters_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
