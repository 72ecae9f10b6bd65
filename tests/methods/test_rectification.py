"""Rectified prototypes: the moving average, similar regions, and that both can be off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods.rectification import Rectification, Rectifier, region_prototypes
from tests.tolerances import assert_close


def prototypes(batch: int = 2, shots: int = 3, channels: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, shots, 2, channels, generator=generator)


def test_nothing_changes_before_training_and_without_regions() -> None:
    rectifier = Rectifier(Rectification(), 5).eval()
    assert torch.equal(rectifier(prototypes()), prototypes())


def test_the_moving_average_begins_as_the_plain_mean() -> None:
    rectifier = Rectifier(Rectification(momentum=0.75), 5)
    steps = [prototypes(seed=seed) for seed in range(8)]
    means = [step[:, :, 1].mean(dim=(0, 1)) for step in steps]
    expected = means[0]
    for number, (step, mean) in enumerate(zip(steps, means, strict=True)):
        rectifier(step)
        if number < 4:  # 1 - 1/4 = 0.75
            expected = torch.stack(means[: number + 1]).mean(dim=0)
        else:
            expected = 0.75 * expected + 0.25 * mean
        assert_close(rectifier.background, expected)
    assert int(rectifier.updates) == 8


def test_evaluation_blends_and_does_not_move_the_average() -> None:
    rectifier = Rectifier(Rectification(background=0.3), 5)
    rectifier(prototypes(seed=1))
    rectifier.eval()
    average = rectifier.background.clone()
    result = rectifier(prototypes())
    assert torch.equal(rectifier.background, average)
    assert_close(result[:, :, 1], 0.7 * prototypes()[:, :, 1] + 0.3 * average)
    assert torch.equal(result[:, :, 0], prototypes()[:, :, 0])


def test_the_average_takes_no_gradient_and_survives_accumulation() -> None:
    rectifier = Rectifier(Rectification(background=0.25), 5)
    leaves = [prototypes(seed=seed).requires_grad_() for seed in (0, 1)]
    outputs = [rectifier(leaf) for leaf in leaves]  # the average moves before the gradients
    torch.stack(outputs)[..., 1, :].sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert_close(leaf.grad[:, :, 1], torch.full((2, 3, 5), 0.75))
        assert leaf.grad[:, :, 0].abs().max() == 0
    assert not rectifier.background.requires_grad


def plain_foreground(foreground: Tensor, regions: Tensor, config: Rectification) -> Tensor:
    """One prototype (C,), the regions one after another."""
    similar = []
    for region in regions:
        cosine = float(F.cosine_similarity(foreground, region, dim=0))
        if cosine >= config.min_similarity:
            similar.append((cosine, region))
    similar = sorted(similar, key=lambda pair: -pair[0])[: config.regions]
    if not similar:
        return foreground
    total = sum(weight for weight, _ in similar)
    mean = sum((weight * region for weight, region in similar), torch.zeros(())) / total
    return (1 - config.foreground) * foreground + config.foreground * mean


@pytest.mark.parametrize(
    "config",
    [
        Rectification(),
        Rectification(foreground=1.0, regions=3),
        Rectification(regions=100, min_similarity=0.8),
        Rectification(min_similarity=1.0),
        Rectification(foreground=0.0),
    ],
    ids=["default", "three", "similar", "none similar", "off"],
)
def test_foregrounds_equal_the_plain_form(config: Rectification) -> None:
    rectifier = Rectifier(config, 5).eval()
    rectifier.regions = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    found = rectifier(prototypes())
    expected = torch.stack(
        [
            plain_foreground(one, rectifier.regions, config)
            for one in prototypes()[:, :, 0].flatten(0, 1)
        ]
    )
    assert_close(found[:, :, 0].flatten(0, 1), expected)
    assert torch.equal(found[:, :, 1], prototypes()[:, :, 1])


def test_an_empty_foreground_stays_zero() -> None:
    rectifier = Rectifier(Rectification(), 5).eval()
    rectifier.regions = torch.rand(6, 5)
    assert rectifier(torch.zeros(1, 1, 2, 5)).abs().max() == 0


def test_bfloat16_stays_bfloat16() -> None:
    rectifier = Rectifier(Rectification(), 5)
    rectifier.regions = torch.rand(6, 5)
    assert rectifier(prototypes().bfloat16()).dtype == torch.bfloat16


def test_regions_are_the_means_of_labels() -> None:
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor(
        [
            [[0, 1, 1, 255], [0, 1, 1, 255], [3, 3, 3, 255]],
            [[2, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 3]],
        ],
        dtype=torch.uint8,
    )
    found = region_prototypes(features, labels, 3)
    expected = [
        features[0, :, labels[0] == 1].mean(dim=1),
        features[0, :, labels[0] == 3].mean(dim=1),
        features[1, :, labels[1] == 2].mean(dim=1),
    ]
    assert_close(found, torch.stack(expected))
    assert len(region_prototypes(features, labels, 1)) == 4
    assert region_prototypes(features, labels * 0, 1).shape == (0, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 1.5}, "background: expected 0 to 1, got 1.5"),
        ({"momentum": -0.1}, "momentum: expected 0 to 1"),
        ({"foreground": 2}, "foreground: expected 0 to 1"),
        ({"regions": 0}, "regions: expected at least 1, got 0"),
        ({"min_similarity": -0.5}, "min_similarity: expected a cosine, 0 to 1"),
    ],
    ids=["background", "momentum", "foreground", "regions", "similarity"],
)
def test_wrong_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rectification(**options)  # type: ignore[arg-type]
