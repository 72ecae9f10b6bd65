"""J and F against figures worked out by hand and by the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from fastfss.protocols.video_metrics import (
    ObjectScore,
    contour,
    contour_accuracy,
    decay,
    dilated,
    region_similarity,
    score_frame,
)


def square(top: int, left: int, side: int, size: tuple[int, int] = (100, 120)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity_is_intersection_over_union() -> None:
    # 40 x 40 each, 20 columns shared: 800 of 2400.
    assert region_similarity(square(10, 10, 40), square(10, 30, 40)) == pytest.approx(1 / 3)


def test_both_empty_is_right_and_one_empty_is_wrong() -> None:
    none, some = np.zeros((50, 60), bool), square(5, 5, 20, (50, 60))
    assert region_similarity(none, none) == contour_accuracy(none, none) == 1
    for pair in ((none, some), (some, none)):
        assert region_similarity(*pair) == contour_accuracy(*pair) == 0


def test_the_contour_is_one_pixel_wide() -> None:
    # The border of a square of 21 x 21 that begins a row above and a column to the left.
    found = contour(square(10, 10, 20, (50, 60)))
    assert found.sum() == 4 * 20
    assert found[9, 9] and found[9, 29] and not found[9, 30] and found[29, 9] and found[29, 29]


def test_a_shift_within_the_radius_costs_nothing_and_beyond_it_all() -> None:
    # ceil(0.008 * sqrt(100^2 + 120^2)) = 2
    truth = square(30, 30, 40)
    assert contour_accuracy(square(32, 30, 40), truth) == pytest.approx(1)
    shifted = contour_accuracy(square(33, 33, 40), truth)
    assert 0 < shifted < 0.2, "only where the contours cross"
    assert contour_accuracy(square(36, 36, 28), truth) == 0, "6 pixels inside of it"


def test_precision_and_recall_are_put_together() -> None:
    # Half of what is found is right, all that is true is found: 2 * 0.5 / 1.5.
    truth = square(10, 10, 30)
    assert contour_accuracy(truth | square(60, 70, 30), truth) == pytest.approx(2 / 3)


@pytest.mark.parametrize("radius", [0, 1, 3, 8, 200])
@pytest.mark.parametrize("size", [(1, 1), (7, 40), (60, 50)])
def test_dilation_is_by_a_disk(radius: int, size: tuple[int, int]) -> None:
    points = np.random.default_rng(radius).random(size) > 0.98
    points[0, 0] = True
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span[None] ** 2 <= radius**2
    if radius < 100:
        assert np.array_equal(dilated(points, radius), binary_dilation(points, disk))
    else:
        assert dilated(points, radius).all()


def test_the_definition_pixel_by_pixel() -> None:
    generator = np.random.default_rng(1)
    mask, truth = (generator.random((40, 50)) > 0.7 for _ in range(2))
    radius = math.ceil(0.008 * math.hypot(40, 50))
    found, true = np.argwhere(contour(mask)), np.argwhere(contour(truth))
    distances = np.sqrt(((found[:, None] - true[None]) ** 2).sum(-1))
    precision = (distances.min(1) <= radius).mean()
    recall = (distances.min(0) <= radius).mean()
    wanted = 2 * precision * recall / (precision + recall)
    assert contour_accuracy(mask, truth) == pytest.approx(wanted)


def test_decay_is_the_first_quarter_less_the_last() -> None:
    assert decay([0.9, 0.9, 0.8, 0.7, 0.7, 0.6, 0.5, 0.5]) == pytest.approx(0.4)
    assert decay([0.5, 0.1]) == 0


def test_an_objects_figures() -> None:
    score = ObjectScore("dog", 1, (1.0, 0.5), (0.8, 0.4))
    assert (score.region, score.contour, score.both) == pytest.approx((0.75, 0.6, 0.675))


def test_pixels_of_255_count_for_nothing() -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    truth[5:15, 10:15] = 255
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15] = 1
    assert score_frame(labels, truth, [1])[1][0] == 1
    with pytest.raises(ValueError, match="labels: expected the truth's size"):
        score_frame(labels[:5], truth, [1])
    with pytest.raises(ValueError, match="mask: expected the truth's size"):
        region_similarity(labels[:5] == 1, truth == 1)
