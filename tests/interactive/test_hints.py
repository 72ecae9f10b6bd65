"""Sessions of a model that is told what was clicked and where the object was before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastfss
from fastfss.interactive import InteractiveSession
from fastfss.weights.check import scene


@pytest.fixture(scope="module")
def model() -> fastfss.methods.FewShotSegmenter:
    return fastfss.create_model("default", size=192).for_inference()


def iou(result: fastfss.Result, truth: np.ndarray) -> float:
    found = result.mask()
    return float((found & truth).sum() / (found | truth).sum())


def test_few_clicks_on_a_thing_find_it(model) -> None:
    image, mask = scene("star", 1)
    truth = mask == 1
    y, x = (int(v) for v in np.argwhere(truth).mean(axis=0))
    session = InteractiveSession(model, image)
    result = session.click(x, y)
    for _ in range(4):
        click = fastfss.interactive.next_click(result.mask(), truth)
        assert click is not None
        result = session.click(click[0], click[1], positive=click[2])
    assert iou(result, truth) > 0.65


def test_undo_and_redo_bring_masks_back_bit_for_bit(model) -> None:
    image, _ = scene("disc", 2)
    session = InteractiveSession(model, image)
    results = [session.click(50 + 20 * n, 90, positive=n != 1) for n in range(4)]
    for before in reversed(results[:-1]):
        assert np.array_equal(session.undo().scores, before.scores)
    for after in results[1:]:
        assert np.array_equal(session.redo().scores, after.scores)


def test_the_mask_before_a_click_is_a_hint(model) -> None:
    """The same clicks in one go see no mask before, so that the result is another."""
    image, _ = scene("ring", 1)
    session = InteractiveSession(model, image, refinement="none")
    session.click(50, 90)
    one_by_one = session.click(150, 90, positive=False)
    both = InteractiveSession(model, image, refinement="none")
    together = both.annotate(lambda a: a.point(50, 90).point(150, 90, positive=False))
    assert not np.array_equal(one_by_one.scores, together.scores)


def test_objects_keep_their_own_hints(model) -> None:
    image, _ = scene("bar", 1)
    session = InteractiveSession(model, image, refinement="none")
    session.click(50, 90)
    first = session.click(140, 90, object=2)
    assert first.scores.shape[0] == 2
    again = session.click(140, 100, object=2)
    assert again.scores.shape == first.scores.shape
    assert bool(torch.isfinite(torch.from_numpy(again.scores)).all())
