"""The alignment loss where PANet's own tests do not reach: what PPNet does differently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods.alignment import (
    alignment_loss,
    pair_scores,
    predicted_regions,
    present_ways,
    region_prototypes,
)
from tests.tolerances import assert_close

B, W, K, N, C, G = 2, 3, 2, 2, 7, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("average", ["shot", "way"])
@pytest.mark.parametrize("align_corners", [False, True], ids=["bilinear", "corners"])
def test_the_loss_equals_cross_entropies_in_a_loop(average: str, align_corners: bool) -> None:
    scores = drawn(B, W, K, 2, 5, 6)
    foregrounds = drawn(B, W, K, 31, 22, seed=1) > 0.3
    backgrounds = drawn(B, W, K, 31, 22, seed=2) > 0.1
    present = torch.tensor([[True, False, True], [True, True, True]])
    expected = torch.zeros((), dtype=torch.float64)
    for item in range(B):
        for way in range(W):
            if not present[item, way]:
                continue
            logits = F.interpolate(
                scores[item, way], (31, 22), mode="bilinear", align_corners=align_corners
            )
            target = torch.full((K, 31, 22), 255)
            target[foregrounds[item, way]] = 1
            target[backgrounds[item, way]] = 0
            if average == "way":
                expected += F.cross_entropy(logits, target, ignore_index=255) / K / W / B
                continue
            for one, mask in zip(logits.split(1), target.split(1), strict=True):
                expected += F.cross_entropy(one, mask, ignore_index=255) / K / W / B
    found = alignment_loss(
        scores,
        foregrounds,
        backgrounds,
        present,
        align_corners=align_corners,
        average=average,  # type: ignore[arg-type]
    )
    assert_close(found, expected)


def test_of_several_prototypes_a_class_the_nearest_counts() -> None:
    supports, prototypes = drawn(B, W, K, C, 4, 3), drawn(B, 1 + W, G, C, seed=1)
    found = pair_scores(supports, prototypes, scale=20.0)
    assert found.shape == (B, W, K, 2, 4, 3)
    for way in range(W):
        for side, number in enumerate((0, way + 1)):
            members = prototypes[:, None, number, :, :, None, None]  # (B, 1, G, C, 1, 1)
            cosines = F.cosine_similarity(supports[:, way].unsqueeze(2), members, dim=3)
            assert_close(found[:, way, :, side], 20 * cosines.amax(dim=2))
    alone = pair_scores(supports, prototypes[:, :, 0], scale=20.0)
    assert_close(alone, pair_scores(supports, prototypes[:, :, :1], scale=20.0))


def test_regions_and_their_prototypes_are_taken_over_all_queries() -> None:
    scores = drawn(B, N, 1 + W, 4, 3).requires_grad_()
    with torch.no_grad():
        scores[1, :, 2] = -100  # the second way of the second episode is nowhere
    features = drawn(B, N, C, 4, 3, seed=1)
    regions = predicted_regions(scores)
    assert not regions.requires_grad
    assert torch.equal(regions.sum(dim=2), torch.ones(B, N, 4, 3))
    assert torch.equal(regions.argmax(dim=2), scores.argmax(dim=2))
    assert present_ways(regions).tolist() == [[True, True, True], [True, False, True]]
    prototypes = region_prototypes(features, regions)
    for item in range(B):
        for number in range(1 + W):
            members = features[item].movedim(0, 1)[:, regions[item, :, number] > 0]
            expected = members.sum(dim=1) / (members.shape[1] + 1e-5)
            assert_close(prototypes[item, number], expected)
