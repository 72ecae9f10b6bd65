from __future__ import annotations

import numpy as np
import pytest
import torch

from fastfss.protocols import DENetBinaryMeter, DENetFullMeter
from tests.protocols.helpers import KINDS, LABELS


def maps(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[row] for row in rows])


def binary_sums(batches, foreground):
    """Class -> intersection and union over the episodes with foreground."""
    sums: dict[int, np.ndarray] = {}
    for prediction, truth, classes in batches:
        for p, y, number in zip(prediction.numpy(), truth.numpy(), classes.tolist(), strict=True):
            y = (y == 1).astype(int)
            if y.any():
                sums[number] = sums.get(number, 0) + np.array(foreground(p.astype(int), y, number))
    return sums


def of_masks(p, y, number):
    return (p + y == 2).sum(), (p + y >= 1).sum()


def of_class_maps(p, y, number):
    return of_masks((p == number).astype(int), y, number)


def as_published(p, y, number):
    return (p + y == 2).sum(), np.isin(p + y, (1, 2)).sum()


@pytest.mark.parametrize(
    ("name", "foreground"),
    [("denet", of_masks), ("denet classes", of_class_maps), ("denet published", as_published)],
)
def test_binary_equals_plain_loops(name, foreground):
    batches = [KINDS[name].batch(seed) for seed in range(11)]
    meter = KINDS[name].make()
    for batch in batches:
        meter.update(*batch)
    sums = binary_sums(batches, foreground)
    wanted = {number: 100 * sums[number][0] / sums[number][1] for number in sorted(sums)}
    assert meter.class_iou() == pytest.approx(wanted, rel=1e-12)
    inter, union = sum(sums.values())
    assert meter.compute() == pytest.approx(
        {"miou": np.mean(list(wanted.values())), "mean_bf_iou": 100 * inter / union}, rel=1e-12
    )


def test_an_episode_without_foreground_is_skipped_false_positives_included():
    meter = DENetBinaryMeter(LABELS)
    meter.update(maps([1, 1], [1, 0]), maps([0, 255], [1, 0]), torch.tensor([2, 3]))
    assert meter.class_iou() == {3: 100}
    assert meter.compute() == {"miou": 100, "mean_bf_iou": 100}


def test_ignored_pixels_are_background():
    meter = DENetBinaryMeter(LABELS)
    meter.update(maps([1, 1, 0]), maps([1, 255, 255]), torch.tensor([3]))
    assert meter.class_iou() == {3: 50}


def test_mean_bf_iou_has_no_background():
    meter = DENetBinaryMeter(LABELS)
    background = [0] * 50
    meter.update(maps([1, 0, *background]), maps([1, 1, *background]), torch.tensor([3]))
    assert meter.compute()["mean_bf_iou"] == 50


def test_class_maps_of_amp_as_they_should_be_and_as_published():
    """Episode of class 5: one pixel of it found, one taken for class 1, and a 2 in the background.

    As published a 1 on the object is a hit, and so is a 2 on the background.
    """
    batch = maps([5, 1, 2, 0]), maps([1, 1, 0, 0]), torch.tensor([5])
    right, published = DENetBinaryMeter(LABELS, "classes"), DENetBinaryMeter(LABELS, "published")
    right.update(*batch)
    published.update(*batch)
    assert right.counts[5].tolist() == [1, 2, 1]
    assert published.counts[5].tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match=r"of 0, 1, 255, prediction of 0\.\.1, got other"):
        DENetBinaryMeter(LABELS).update(*batch)


def test_as_published_a_class_whose_union_is_empty_is_nan():
    meter = DENetBinaryMeter(LABELS, "published")
    meter.update(maps([7, 0]), maps([1, 0]), torch.tensor([7]))
    assert np.isnan(meter.compute()["miou"])


def test_binary_bad_input():
    with pytest.raises(ValueError, match=r"predictions: expected one of .* got 'maps'"):
        DENetBinaryMeter(LABELS, "maps")
    with pytest.raises(ValueError, match="labels: expected at least 2"):
        DENetBinaryMeter(1)
    with pytest.raises(ValueError, match="got other values in 1 pixels"):
        DENetBinaryMeter(LABELS).update(maps([0, 1]), maps([0, 3]), torch.tensor([3]))
    with pytest.raises(ValueError, match="other: expected settings"):
        DENetBinaryMeter(LABELS).merge(DENetBinaryMeter(LABELS, "classes"))


def test_full_equals_plain_loops():
    meter, confusion = DENetFullMeter(LABELS), np.zeros((LABELS, LABELS))
    for seed in range(5):
        prediction, truth = KINDS["denet full"].batch(seed)
        meter.update(prediction, truth)
        kept = truth.numpy() < LABELS
        np.add.at(confusion, (truth.numpy()[kept], prediction.numpy()[kept]), 1)
    assert np.array_equal(meter.histogram.numpy(), confusion)
    diagonal = np.diag(confusion)
    iou = diagonal / np.maximum(confusion.sum(0) + confusion.sum(1) - diagonal, 1e-8)
    assert meter.compute()["miou"] == pytest.approx(100 * iou.mean(), rel=1e-12)
    assert meter.class_iou() == pytest.approx(dict(enumerate(100 * iou)), rel=1e-12)


def test_absent_labels_count_0_or_are_skipped():
    batch = maps([0, 1, 1, 3]), maps([0, 1, 1, 1])
    zero, skip = DENetFullMeter(5), DENetFullMeter(5, skip_absent=True)
    for meter in (zero, skip):
        meter.update(*batch)
    assert zero.class_iou() == pytest.approx({0: 100, 1: 200 / 3, 2: 0, 3: 0, 4: 0})
    assert zero.compute()["miou"] == pytest.approx(500 / 15)
    assert skip.class_iou() == pytest.approx({0: 100, 1: 200 / 3, 3: 0})
    assert skip.compute()["miou"] == pytest.approx(500 / 9)


def test_truth_outside_the_labels_is_skipped_and_predictions_outside_are_an_error():
    meter = DENetFullMeter(3)
    meter.update(maps([0, 1, 2, 2]), maps([0, 255, 3, -1]))
    assert meter.histogram.sum() == 1
    for stray in (3, -1):
        with pytest.raises(ValueError, match=r"expected predictions of 0..2, got other values in"):
            meter.update(maps([0, stray]), maps([0, 255]))


def test_subclass_mean_divides_by_all_labels_as_published():
    meter = DENetFullMeter(5)
    meter.update(maps([0, 1, 1, 3]), maps([0, 1, 1, 1]))
    assert meter.subclass_mean([1, 2]) == pytest.approx(200 / 15)
    assert meter.subclass_mean([1, 2], divide_by_all=False) == pytest.approx(100 / 3)
    for wrong in ([], [5], [-1]):
        with pytest.raises(ValueError, match=r"classes: expected numbers of 0\.\.4"):
            meter.subclass_mean(wrong)
