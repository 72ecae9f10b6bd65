from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("scipy", reason="not installed: pip install fastfss[interactive]")

from fastfss.interactive import guided_filter, next_click
from fastfss.protocols.clicks import Mask, evaluate_clicks, objects_of
from tests.protocols.blocks import Blocks


def square(top: int, left: int, side: int) -> Mask:
    mask = np.zeros((40, 50), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_the_first_click_is_in_the_objects_middle() -> None:
    assert next_click(np.zeros((40, 50), bool), square(10, 20, 9)) == (24, 14, True)


def test_the_larger_error_is_corrected() -> None:
    truth, found = square(5, 5, 7), square(20, 25, 15)
    assert next_click(found, truth) == (32, 27, False)
    assert next_click(square(20, 25, 3), truth) == (8, 8, True)


def test_the_images_border_is_an_edge() -> None:
    truth = np.zeros((40, 50), bool)
    truth[:, :6] = True
    x, _, positive = next_click(np.zeros_like(truth), truth)  # type: ignore[misc]
    assert positive and x in (2, 3)


def test_ignored_pixels_are_no_errors() -> None:
    truth = square(5, 5, 7)
    assert next_click(truth, truth) is None
    assert next_click(truth | square(20, 25, 5), truth, square(20, 25, 5)) is None
    with pytest.raises(ValueError, match="predicted: expected the truth's size"):
        next_click(truth[:5], truth)


class Painter:
    """Segments a growing share of the object: `step` of its rows a click."""

    def __init__(self, truth: Mask, step: float) -> None:
        self.truth, self.step, self.clicks = truth, step, 0

    def click(self, x: int, y: int, positive: bool) -> Mask:
        self.clicks += 1
        found = self.truth.copy()
        rows = np.flatnonzero(self.truth.any(axis=1))
        found[rows[round(min(1.0, self.step * self.clicks) * len(rows)) :]] = False
        return found


@pytest.mark.parametrize(
    ("step", "noc"), [(0.1, {80: 8, 85: 9, 90: 9}), (0.001, dict.fromkeys((80, 85, 90), 20))]
)
def test_noc_is_the_first_click_that_is_good_enough(step: float, noc: dict[int, int]) -> None:
    images = Blocks("folder", 1, 4, size=(60, 80))
    objects = objects_of(images)
    turn = iter(objects)

    def start(image: Tensor) -> Painter:
        return Painter(images.mask(*next(turn)).numpy() == 1, step)

    report = evaluate_clicks(start, images, objects)
    for threshold, clicks in noc.items():
        assert abs(report.noc[threshold] - clicks) <= 1
    assert report.failures == dict.fromkeys((80, 85, 90), 4 if step < 0.01 else 0)
    assert len(report.curve) == 20 and list(report.curve) == sorted(report.curve)
    assert report.objects == 4 and report.seconds_per_click > 0


def test_objects_are_drawn_by_a_seed() -> None:
    images = Blocks("folder", 3, 20)
    every = objects_of(images)
    assert len(every) == sum(len(item.pixels) for item in images.items)
    some = objects_of(images, count=5, seed=1)
    assert set(some) <= set(every) and some == objects_of(images, count=5, seed=1)
    assert some != objects_of(images, count=5, seed=2)
    with pytest.raises(ValueError, match="objects: expected at least one, got none"):
        evaluate_clicks(lambda image: Painter(np.ones((2, 2), bool), 1), images, [])


def test_the_guided_filter_moves_a_blurred_edge_to_the_images() -> None:
    image = torch.zeros(3, 240, 320, dtype=torch.uint8)
    image[:, :, 160:] = 200
    shifted = torch.zeros(240, 320)
    shifted[:, 164:] = 1
    blurred = torch.nn.functional.avg_pool2d(shifted[None, None], 17, 1, 8)[0, 0]
    nothing = torch.full((240, 320), 255, dtype=torch.uint8)
    refined = guided_filter(image, blurred, nothing)
    inner, truth = slice(40, 200), image[0] > 0
    before = ((blurred > 0.5) != truth).float()[inner].mean()
    after = ((refined > 0.5) != truth).float()[inner].mean()
    assert after < 0.5 * before
