from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fastfss.data import box_masks, dense_masks, dilate_scribble, scribble_masks


def test_dense_masks_leave_out_the_other_classes_of_the_episode():
    label = torch.tensor([[0, 7, 9, 3, 255]], dtype=torch.uint8)
    foreground, background = dense_masks(label, 7, [7, 9])
    assert foreground.tolist() == [[0, 1, 0, 0, 0]]
    # As published, pixels to be ignored count as background, and so do classes of other episodes.
    assert background.tolist() == [[1, 0, 0, 1, 1]]
    assert foreground.dtype == background.dtype == torch.uint8


def test_a_dense_mask_of_a_class_outside_the_episode_is_an_error():
    with pytest.raises(ValueError, match=r"number: expected one of .* \[7, 9\], got 8"):
        dense_masks(torch.zeros(2, 2, dtype=torch.uint8), 8, [7, 9])


SCRIBBLE = torch.tensor([[0, 3, 3, 255, 5, 9, 9]], dtype=torch.uint8)
OBJECT = torch.tensor([[1, 0, 1, 1, 1, 0, 0]], dtype=torch.uint8)


def test_the_scribble_is_one_stroke_that_touches_the_object_where_it_does():
    masks = {
        tuple(scribble_masks(SCRIBBLE, OBJECT, random.Random(seed))[0][0].tolist())
        for seed in range(20)
    }
    assert masks == {(0, 0, 1, 0, 0, 0, 0), (0, 0, 0, 0, 1, 0, 0)}


def test_the_stroke_is_chosen_as_python_would():
    for seed in range(20):
        chosen = scribble_masks(SCRIBBLE, OBJECT, random.Random(seed))[0]
        stroke = random.Random(seed).choice([3, 5])
        assert torch.equal(chosen, ((stroke == SCRIBBLE) & (OBJECT == 1)).byte())


def test_the_background_scribble_is_the_zero_stroke():
    background = scribble_masks(SCRIBBLE, OBJECT, random.Random(0))[1]
    assert background.tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    assert background.dtype == torch.uint8


def test_an_object_without_a_stroke_has_an_empty_scribble_and_draws_nothing():
    generator = random.Random(0)
    state = generator.getstate()
    for foreground in (torch.zeros_like(OBJECT), (SCRIBBLE == 255).byte()):
        mask, background = scribble_masks(SCRIBBLE, foreground, generator)
        assert not mask.any() and background.any()
    assert generator.getstate() == state


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(9, 14), (1, 5), (8, 1)], ids=str)
def test_dilation_is_a_minimum_filter(size, shape):
    scribble = np.full(shape, 255, dtype=np.uint8)
    rng = np.random.default_rng(size)
    scribble[rng.random(shape) < 0.1] = rng.integers(0, 9)
    scribble[0, 0] = 4
    before, after = size // 2, size - size // 2 - 1
    padded = np.pad(scribble, (before, after), constant_values=255)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    ours = dilate_scribble(torch.from_numpy(scribble), size)
    assert ours.dtype == torch.uint8
    assert np.array_equal(ours.numpy(), windows.min((2, 3)))


def test_dilation_equals_scipys():
    ndimage = pytest.importorskip("scipy.ndimage")
    scribble = np.random.default_rng(0).integers(0, 256, (21, 17), dtype=np.uint8)
    for size in (2, 3, 5, 8):
        wanted = ndimage.minimum_filter(scribble, size)
        assert np.array_equal(dilate_scribble(torch.from_numpy(scribble), size).numpy(), wanted)


def boxes_plainly(instances: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    instances = instances * foreground
    box, background, most = np.zeros_like(instances), np.ones_like(instances), 0
    for number in sorted(set(instances.ravel().tolist()) - {0}):
        rows, columns = np.nonzero(instances == number)
        window = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        background[window] = 0
        if len(rows) > most:
            box, most = np.zeros_like(instances), len(rows)
            box[window] = 1
    return box, background


@pytest.mark.parametrize("seed", range(12))
def test_boxes_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    instances = np.zeros((13, 11), dtype=np.uint8)
    for number in range(1, rng.integers(2, 6)):
        top, left = rng.integers(0, 10, 2)
        instances[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = number
    foreground = (rng.random(instances.shape) < 0.6).astype(np.uint8)
    ours = box_masks(torch.from_numpy(instances), torch.from_numpy(foreground))
    for mask, wanted in zip(ours, boxes_plainly(instances, foreground), strict=True):
        assert mask.dtype == torch.uint8 and np.array_equal(mask.numpy(), wanted)


def test_boxes_include_their_last_row_and_column():
    instances = torch.zeros(6, 6, dtype=torch.uint8)
    instances[1, 2] = instances[3, 4] = 5
    box, background = box_masks(instances, torch.ones_like(instances))
    assert box.nonzero().aminmax(dim=0).max.tolist() == [3, 4]
    assert torch.equal(box, 1 - background) and box.sum() == 9


def test_of_equally_large_instances_the_lowest_number_has_the_box():
    instances = torch.tensor([[0, 8, 8, 0, 2, 2]])
    assert box_masks(instances, instances > 0)[0].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_without_an_instance_the_box_is_empty_and_all_is_background():
    box, background = box_masks(torch.ones(3, 4), torch.zeros(3, 4))
    assert not box.any() and background.all()


def test_annotations_of_other_shapes_are_an_error():
    flat, small = torch.zeros(2, 3, 4), torch.zeros(3, 5)
    for function in (
        lambda one, _: dense_masks(one, 1, [1]),
        lambda one, other: scribble_masks(one, other, random.Random(0)),
        lambda one, _: dilate_scribble(one, 3),
        box_masks,
    ):
        with pytest.raises(ValueError, match=r": expected \(H, W\), got \(2, 3, 4\)"):
            function(flat, flat)
    wrong = r"foreground: expected the map's \(3, 5\), got \(3, 4\)"
    with pytest.raises(ValueError, match=wrong):
        box_masks(small, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=wrong):
        scribble_masks(small, torch.zeros(3, 4), random.Random(0))
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        dilate_scribble(small, 0)
