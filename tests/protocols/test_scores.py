"""Figures of single episodes' counts against the meters, which the golden cases prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastfss.protocols import (
    ConfusionMeter,
    DENetBinaryMeter,
    EpisodeCounts,
    FoldMeter,
    PANetMeter,
    PFENetMeter,
    figures_of,
)
from fastfss.protocols._counting import count_pairs
from fastfss.protocols.scores import fate_of_unseen

CLASSES = (6, 7, 8, 9)


def episodes(ways: int, count: int = 60, runs: int = 1) -> tuple[torch.Tensor, ...]:
    """Predictions, truths, classes and runs; class 9 never occurs, some truths are empty."""
    generator = torch.Generator().manual_seed(ways)
    truth = torch.randint(0, ways + 1, (count, 9, 11), generator=generator)
    truth[torch.rand(count, 9, 11, generator=generator) < 0.1] = 255
    truth[::7] = torch.where(truth[::7] == 255, 255, 0)
    noise = torch.randint(0, ways + 1, (count, 9, 11), generator=generator)
    keep = torch.rand(count, 9, 11, generator=generator) < 0.6
    prediction = torch.where(keep & (truth != 255), truth, noise)
    order = [torch.randperm(3, generator=generator)[:ways] for _ in range(count)]
    classes = torch.stack(order) + 6
    return prediction, truth, classes, torch.arange(count) * runs // count


def counted(parts: tuple[torch.Tensor, ...]) -> EpisodeCounts:
    prediction, truth, classes, runs = parts
    pairs, _ = count_pairs(prediction, truth, labels=classes.shape[1] + 1)
    return EpisodeCounts(pairs.numpy(), classes.numpy(), runs.numpy())


@pytest.mark.parametrize(("figure", "meter"), [("fold", FoldMeter), ("pfenet", PFENetMeter)])
def test_fold_figures_are_the_meters(figure, meter) -> None:
    parts = episodes(1)
    reference = meter(CLASSES)
    reference.update(parts[0], parts[1], parts[2][:, 0])
    found = figures_of(counted(parts), CLASSES, figure)
    assert found.miou == pytest.approx(reference.compute()["miou"], abs=1e-9)
    assert found.fb_iou == pytest.approx(reference.compute()["fb_iou"], abs=1e-9)
    assert found.class_iou == pytest.approx(reference.class_iou(), abs=1e-9)
    assert found.class_iou[9] == 0


def test_a_class_without_episodes_is_left_out_of_ones_own_data() -> None:
    parts = episodes(1)
    seen = figures_of(counted(parts), CLASSES, "seen")
    fold = figures_of(counted(parts), CLASSES[:3], "fold")
    assert seen.miou == pytest.approx(fold.miou, abs=1e-9)
    assert seen.fb_iou == pytest.approx(fold.fb_iou, abs=1e-9)
    assert seen.class_iou[6] == fold.class_iou[6]
    assert math.isnan(seen.class_iou[9])
    assert counted(parts).unseen(CLASSES) == [9]
    assert fate_of_unseen("seen") == "are left out" and fate_of_unseen("fold") == "count as 0"


def test_the_confusion_leaves_out_what_never_occurred() -> None:
    parts = episodes(1)
    reference = ConfusionMeter(21)
    reference.update(parts[0], parts[1], parts[2][:, 0])
    found = figures_of(counted(parts), CLASSES, "confusion")
    assert found.miou == pytest.approx(reference.compute()["miou"], abs=1e-9)
    assert found.fb_iou is None
    assert math.isnan(found.class_iou[9])


@pytest.mark.parametrize("ways", [1, 2])
def test_panets_figures_over_runs_are_the_meters(ways: int) -> None:
    parts = episodes(ways, count=90, runs=3)
    reference = PANetMeter(CLASSES[:3], runs=3)
    for run in range(3):
        members = parts[3] == run
        reference.update(parts[0][members], parts[1][members], parts[2][members], run=run)
    found = figures_of(counted(parts), CLASSES[:3], "panet")
    wanted = reference.compute()
    assert found.miou == pytest.approx(wanted["miou"], abs=1e-9)
    assert found.fb_iou == pytest.approx(wanted["fb_iou"], abs=1e-9)
    assert found.class_iou == pytest.approx(reference.class_iou(), abs=1e-9)
    assert np.mean(found.run_mious) == pytest.approx(found.miou)


def test_denets_figures_are_the_meters() -> None:
    prediction, truth, classes, runs = episodes(1)
    truth = torch.where(truth == 255, 0, truth)  # its boundaries are background
    reference = DENetBinaryMeter(21)
    reference.update(prediction, truth, classes[:, 0])
    found = figures_of(counted((prediction, truth, classes, runs)), CLASSES, "denet")
    assert found.miou == pytest.approx(reference.compute()["miou"], abs=1e-9)
    assert found.fb_iou == pytest.approx(reference.compute()["mean_bf_iou"], abs=1e-9)


def test_the_interval_is_of_episodes_drawn_again() -> None:
    parts = episodes(1)
    counts = counted(parts)
    found = figures_of(counts, CLASSES[:3], "fold", repeats=400, seed=5)
    low, high = found.interval
    assert low < found.miou < high
    assert figures_of(counts, CLASSES[:3], "fold", repeats=400, seed=5).interval == found.interval
    # By hand: draw, add up, divide.
    generator = np.random.RandomState(1)
    means = []
    for _ in range(400):
        chosen = torch.from_numpy(generator.randint(0, 60, 60))
        meter = FoldMeter(CLASSES[:3])
        meter.update(parts[0][chosen], parts[1][chosen], parts[2][chosen][:, 0])
        means.append(meter.compute()["miou"])
    np.testing.assert_allclose(found.interval, np.percentile(means, [2.5, 97.5]), atol=1.0)


@pytest.mark.parametrize("figure", ["fold", "seen", "pfenet", "confusion", "panet", "denet"])
def test_classes_of_few_episodes_do_not_stretch_the_interval(figure) -> None:
    # Two classes of one and of three equal episodes: whichever are drawn, all IoUs are 60.
    counts = EpisodeCounts(
        np.array([[[3, 1], [1, 3]]] * 4), np.array([[6], [7], [7], [7]]), np.zeros(4, int)
    )
    assert figures_of(counts, (6, 7), figure).interval == (60.0, 60.0)
    # A class that never occurs is what the protocol says.
    three = figures_of(counts, (6, 7, 8), figure)
    wanted = {"fold": 40.0, "pfenet": 40.0, "panet": math.nan}.get(figure, 60.0)
    np.testing.assert_allclose([three.miou, three.interval[1]], wanted)


def test_one_sure_episode_has_no_width() -> None:
    counts = EpisodeCounts(np.array([[[3, 1], [1, 3]]]), np.array([[6]]), np.array([0]))
    found = figures_of(counts, (6,), "fold")
    assert found.interval == (60.0, 60.0) and found.miou == 60.0
    assert counts.iou.tolist() == [0.6]


def test_an_episode_without_object_or_finding_is_right() -> None:
    counts = EpisodeCounts(np.array([[[9, 0], [0, 0]]]), np.array([[6]]), np.array([0]))
    assert counts.iou.tolist() == [1.0]
