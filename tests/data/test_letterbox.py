from __future__ import annotations

import numpy as np
import pytest
import torch

from fastfss.data import letterbox_image, letterbox_labels, letterbox_size

SHAPES = [(75, 100), (130, 97), (90, 90), (473, 473), (20, 900)]


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((375, 500), 473, (352, 472)),
        ((500, 375), 473, (472, 352)),
        ((480, 640), 641, (480, 640)),
        ((640, 640), 641, (640, 640)),
        ((30, 20), 121, (120, 80)),
        ((3, 900), 121, (8, 120)),
    ],
    ids=str,
)
def test_both_sides_are_rounded_down_to_a_multiple_of_eight(
    shape: tuple[int, int], size: int, wanted: tuple[int, int]
) -> None:
    assert letterbox_size(*shape, size) == wanted


def test_small_images_stay_as_they_are_where_nothing_is_enlarged() -> None:
    assert letterbox_size(75, 100, 121, enlarge=False) == (75, 100)
    assert letterbox_size(121, 100, 121, enlarge=False) == (121, 100)
    assert letterbox_size(122, 100, 121, enlarge=False) == letterbox_size(122, 100, 121)
    image, labels = torch.rand(1, 3, 75, 100), torch.randint(0, 3, (1, 75, 100))
    framed = letterbox_image(image, 121, enlarge=False)
    framed_labels = letterbox_labels(labels, 121, enlarge=False)
    assert torch.equal(framed[..., :75, :100], image)
    assert torch.equal(framed_labels[..., :75, :100], labels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_border_is_zero_in_images_and_255_in_labels(shape: tuple[int, int]) -> None:
    height, width = letterbox_size(*shape, 121)
    image = letterbox_image(torch.ones(2, 3, *shape), 121)
    labels = letterbox_labels(torch.ones(2, *shape, dtype=torch.uint8), 121)
    assert image.shape == (2, 3, 121, 121)
    assert labels.shape == (2, 121, 121)
    assert labels.dtype == torch.uint8
    inside = torch.zeros(121, 121, dtype=torch.bool)
    inside[:height, :width] = True
    assert torch.equal(image > 0.999, inside.expand_as(image))
    assert torch.equal(image == 0, ~inside.expand_as(image))
    assert torch.equal(labels == 1, inside.expand_as(labels))
    assert torch.equal(labels == 255, ~inside.expand_as(labels))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_sampled_bilinearly_without_antialiasing(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape)
    height, width = letterbox_size(*shape, 121)

    def blend(new: int, old: int) -> np.ndarray:
        """(new, old): the weights of the two nearest pixel centres."""
        centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.floor(centres).astype(int)
        weights = np.zeros((new, old))
        weights[np.arange(new), low] = 1 - (centres - low)
        weights[np.arange(new), np.minimum(low + 1, old - 1)] += centres - low
        return weights

    wanted = blend(height, shape[0]) @ image @ blend(width, shape[1]).T
    ours = letterbox_image(torch.from_numpy(image)[None, None], 121)[0, 0]
    assert np.abs(ours[:height, :width].numpy() - wanted).max() < 1e-9


def test_labels_follow_the_float64_rule_where_exact_arithmetic_picks_the_neighbour() -> None:
    """floor(d * (1 / (new / old))), which falls short of some whole numbers."""
    differing = 0
    for old in range(40, 260, 7):
        (new, _), labels = letterbox_size(old, 1, 121), torch.arange(old).view(1, old, 1)
        ours = letterbox_labels(labels, 121)[0, :new, 0].tolist()
        step = 1 / (new / old)
        assert ours == [min(int(row * step), old - 1) for row in range(new)]
        differing += ours != [row * old // new for row in range(new)]
    assert differing > 0
