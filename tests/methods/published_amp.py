"""AMP's evaluation forward as published: the yardstick for speed, and an oracle.

Supports go through the network for every query, the background's row is moved image by image and
written back, and every item has its own copy of the classifiers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss import AMP


def published_proxies(features: Tensor, masks: Tensor) -> Tensor:
    """Masked means at length 1, (M, D), of maps (M, D, h, w) under masks (M, H, W)."""
    small = F.interpolate(masks.unsqueeze(1).float(), features.shape[2:], mode="nearest")
    sums = (small * features).sum((2, 3))
    return F.normalize(sums / (small.sum((2, 3)) + 0.001), dim=1)


def published_level(
    classifier: torch.nn.Conv2d,
    support: Tensor,  # (N * K, D, h, w)
    masks: Tensor,  # (N * K, H, W) of {0, 1}
    query: Tensor,  # (N, D, h, w)
    labels: Tensor,  # (N,)
    *,
    base: bool,
    alpha: float,
) -> Tensor:  # (N, C or 2, h, w)
    """One level's logits; overwrites row 0 of the classifier."""
    items, shots = len(query), len(support) // len(query)
    background = published_proxies(support, 1 - masks)
    foreground = published_proxies(support, masks).unflatten(0, (items, shots)).mean(dim=1)
    weight = classifier.weight.data.flatten(1)
    row, rows = weight[0].clone(), []
    for item in range(items):
        for shot in range(shots):
            row = alpha * background[item * shots + shot] + (1 - alpha) * row
        rows.append(row)
    weight[0] = row
    logits = []
    for item, label in enumerate(labels.tolist()):
        if base:
            matrix = weight.clone()
            matrix[label] = foreground[item]
        else:
            matrix = torch.stack([rows[item], foreground[item]])
        logits.append(F.conv2d(query[item : item + 1], matrix[:, :, None, None]))
    return torch.cat(logits)


def published_levels(
    model: AMP,
    supports: list[Tensor],  # (N * K, D, h, w) a level
    masks: Tensor,  # (N, K, H, W) of {0, 1}
    queries: list[Tensor],  # (N, D, h, w) a level
    labels: Tensor,  # (N,)
) -> Tensor:  # (N, C or 2, h, w)
    """The logits behind the encoder; overwrites row 0 of the model's classifiers."""
    levels = [
        published_level(
            *(classifier, support, masks.flatten(0, 1), features, labels),
            base=model.base,
            alpha=model.alpha,
        )
        for classifier, support, features in zip(model.classifiers, supports, queries, strict=True)
    ]
    total = levels[2]
    for one in (levels[1], levels[0]):
        total = one + F.interpolate(total, one.shape[2:], mode="bilinear", align_corners=True)
    return total


def published_forward(
    model: AMP,
    images: Tensor,  # (N, K, 3, H, W)
    masks: Tensor,  # (N, K, H, W) of {0, 1}
    query: Tensor,  # (N, 3, H, W)
    labels: Tensor,  # (N,)
) -> Tensor:  # (N, C or 2, h, w)
    """The logits; overwrites row 0 of the model's classifiers."""
    supports, queries = model.levels(images.flatten(0, 1)), model.levels(query)
    return published_levels(model, supports, masks, queries, labels)
