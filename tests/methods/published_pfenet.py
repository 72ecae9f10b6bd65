"""PFENet's evaluation forward as published: the yardstick for speed and memory, and an oracle.

Each support alone through the encoder, per query; every support position matched, in a matrix of
all pairs; the 513-channel concatenations; the branches' auxiliary logits, which nobody uses in
evaluation. It takes the trained modules of our model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods import PFENet
from tests.published import pfenet_prior


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)


def scaled_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """(B, h, w) in [0, 1]: the largest cosine over all support positions, stretched per image."""
    best = pfenet_prior(query, support, mask).flatten(1)
    low, top = best.min(dim=1, keepdim=True)[0], best.max(dim=1, keepdim=True)[0]
    return ((best - low) / (top - low + 1e-7)).view(len(query), *query.shape[2:])


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """(B, C, 1, 1) from (B, C, h, w) and (B, 1, h, w), by pools times the area."""
    size = features.shape[-2:]
    area = F.avg_pool2d(mask, size) * size[0] * size[1] + 5e-4
    return F.avg_pool2d(features * mask, size) * size[0] * size[1] / area


def middle_features(model: PFENet, maps: dict[str, Tensor]) -> Tensor:
    """layer3 and layer2, joined on layer3's grid."""
    second, third = (maps[layer] for layer in model.layers[:2])
    if second.shape[-2:] != third.shape[-2:]:
        second = resize(second, third.shape[-2:])
    return torch.cat([third, second], dim=1)


def published_head(
    model: PFENet, query: Tensor, vector: Tensor, prior: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, 2, h, w) and each branch's, of query features (B, 256, h, w), reduced.

    Args:
        model: its trained modules.
        query: (B, 256, h, w).
        vector: (B, 256, 1, 1).
        prior: (B, 1, h, w).
    """
    size = query.shape[-2:]
    results, inner = [], []
    for index, side in enumerate(model.pyramid):
        grid = int(size[0] * side) if side <= 1 else int(side)
        pooled = F.adaptive_avg_pool2d(query, (grid, grid))
        pieces = [pooled, vector.expand(-1, -1, grid, grid), resize(prior, (grid, grid))]
        merged = model.init_merge[index](torch.cat(pieces, dim=1))
        if index >= 1:
            previous = resize(results[index - 1], (grid, grid))
            merged = model.alpha_conv[index - 1](torch.cat([merged, previous], dim=1)) + merged
        merged = model.beta_conv[index](merged) + merged
        inner.append(model.inner_cls[index](merged))
        results.append(resize(merged, size))
    joined = model.res1(torch.cat(results, dim=1))
    joined = model.res2(joined) + joined
    return model.cls(joined), inner


def published_forward(
    model: PFENet, supports: Sequence[Tensor], masks: Sequence[Tensor], query: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, 2, H, W) and each branch's, of K supports (B, 3, H, W) with masks, one query."""
    maps = model.encoder(query, model.layers)
    high = maps[model.layers[2]]
    query_features = model.down_query(middle_features(model, maps))
    size = query_features.shape[-2:]
    vectors, priors = [], []
    for image, labels in zip(supports, masks, strict=True):
        mask = (labels == 1).float().unsqueeze(1)
        shot = model.encoder(image, model.layers[:2])
        third = shot[model.layers[1]]
        small = resize(mask, third.shape[-2:])
        deep = model.encoder.resume(third * small, model.layers[1], model.layers[2])  # type: ignore[operator]
        vectors.append(masked_mean(model.down_supp(middle_features(model, shot)), small))
        on_deep = resize(mask, deep.shape[-2:]).squeeze(1)
        prior = scaled_prior(high, deep, on_deep)
        priors.append(resize(prior.unsqueeze(1), size))
    vector, prior = torch.stack(vectors).mean(dim=0), torch.cat(priors, dim=1).mean(1, keepdim=True)
    logits, inner = published_head(model, query_features, vector, prior)
    return resize(logits, query.shape[-2:]), inner
