"""Prototype alignment: the supports, segmented with prototypes of the queries' prediction.

Wang et al., ICCV 2019 (PANet), section 3.4; PPNet (Liu et al., ECCV 2020) trains with it too. With
m = argmax of the queries' scores at feature resolution, without gradient:

    q_j = sum_{queries, positions} F [m = j] / (|m = j| + eps)
    loss = sum over the ways w that m holds, over shots k, of CE(scores of support (w, k) with
           (q_0, q_w), its mask) / (W K)

`predicted_regions`, `region_prototypes`, `pair_scores` and `alignment_loss` are these steps for all
episodes of a batch at once; an absent way counts with weight 0, so that nothing waits for the GPU.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import masked_average_pool, prototype_match

Average = Literal["shot", "way"]


def predicted_regions(scores: Tensor) -> Tensor:
    """Where each class has the largest score: 0/1, (B, N, 1 + W, h, w) as the scores.

    Args:
        scores: (B, N, 1 + W, h, w) of N queries; no gradient passes.
    """
    best = scores.detach().argmax(dim=2, keepdim=True)
    return torch.zeros_like(scores).scatter_(2, best, 1)


def present_ways(regions: Tensor) -> Tensor:
    """Which ways have a region, (B, W) bool, of regions (B, N, 1 + W, h, w)."""
    return regions[:, :, 1:].amax(dim=(1, 3, 4)) > 0


def region_prototypes(features: Tensor, regions: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Mean feature of each class over all queries, (B, 1 + W, C); zeros for an empty region.

    Args:
        features: (B, N, C, h, w).
        regions: (B, N, 1 + W, h, w).
        eps: added to the number of positions.
    """
    return masked_average_pool(_one_below_another(features), _one_below_another(regions), eps=eps)


def pair_scores(supports: Tensor, prototypes: Tensor, *, scale: float) -> Tensor:
    """Scores of each support with the background and its own way: (B, W, K, 2, h, w).

    Args:
        supports: features (B, W, K, C, h, w).
        prototypes: background and ways, (B, 1 + W, C), or (B, 1 + W, G, C) where each class has G
            of which the nearest counts.
        scale: factor of the cosine.
    """
    leading = supports.shape[:3]
    ways = prototypes[:, 1:]
    pairs = torch.stack([prototypes[:, :1].expand_as(ways), ways], dim=2)
    scores: Tensor = prototype_match(
        supports.flatten(0, 2),
        pairs.repeat_interleave(leading[2], dim=1).flatten(0, 1),
        scale=scale,
        reduce="max" if prototypes.ndim == 4 else None,
    )
    return scores.view(*leading, *scores.shape[1:])


def alignment_loss(
    scores: Tensor,
    foregrounds: Tensor,
    backgrounds: Tensor,
    present: Tensor,
    *,
    align_corners: bool = False,
    average: Average = "shot",
) -> Tensor:
    """The loss above, averaged over the batch.

    Args:
        scores: (B, W, K, 2, h, w) of `pair_scores`; enlarged bilinearly to the masks.
        foregrounds: (B, W, K, H, W) bool, the supports' own masks.
        backgrounds: likewise. Background where both hold, left out where neither does.
        present: (B, W), the ways that count.
        align_corners: of the enlargement.
        average: "shot": the cross-entropy is a mean over each shot's pixels, divided by K and
            summed; "way": a mean over the pixels of all shots of a way together, divided by K
            (published so in PPNet's graph model, which weakens it K-fold).

    Returns:
        A scalar; a shot without any labelled pixel adds 0.
    """
    # Two-class cross-entropy is binary cross-entropy of the difference, and enlarging is linear.
    margins = scores[:, :, :, 1] - scores[:, :, :, 0]
    size = (foregrounds.shape[-2], foregrounds.shape[-1])
    large = F.interpolate(
        margins.flatten(0, 1), size, mode="bilinear", align_corners=align_corners
    ).view(foregrounds.shape)
    labelled = foregrounds | backgrounds
    target = (foregrounds & ~backgrounds).to(large.dtype)
    losses = F.binary_cross_entropy_with_logits(large, target, labelled, reduction="none")
    of_one_mean = (3, 4) if average == "shot" else (2, 3, 4)
    means = losses.sum(of_one_mean) / labelled.sum(of_one_mean).clamp_min(1)
    batch, ways, shots = scores.shape[:3]
    of_ways = means.sum(dim=2) if average == "shot" else means
    return (of_ways * present).sum() / (batch * ways * shots)


def _one_below_another(maps: Tensor) -> Tensor:
    """(B, N, C, h, w) -> (B, C, N h, w); not copied where N = 1."""
    return maps.transpose(1, 2).flatten(2, 3)
