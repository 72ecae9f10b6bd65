"""PANet's forward as published: the yardstick for speed and memory, and an oracle.

Slow on purpose: all images of an episode through the encoder for every query; each support's map
enlarged to the mask's size twice, once a prototype; one cosine call a class; loops over episodes,
ways, shots and queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder


def published_pool(features: Tensor, mask: Tensor) -> Tensor:
    """(1, C) of a map (1, C, h, w), enlarged to the mask (1, H, W)."""
    large = F.interpolate(features, size=mask.shape[-2:], mode="bilinear", align_corners=False)
    return torch.sum(large * mask[:, None], dim=(2, 3)) / (mask[:, None].sum(dim=(2, 3)) + 1e-5)


def published_prototypes(
    supports: Tensor,  # (W, K, C, h, w), one episode
    foregrounds: Tensor,  # (W, K, H, W), 0/1 floats
    backgrounds: Tensor,
) -> list[Tensor]:
    """Background and ways, (1, C) each."""
    ways, shots = supports.shape[:2]
    pooled = [
        [
            [
                published_pool(supports[way, [shot]], masks[way, [shot]])
                for masks in (foregrounds, backgrounds)
            ]
            for shot in range(shots)
        ]
        for way in range(ways)
    ]
    of_ways = [sum(shot[0] for shot in way) / shots for way in pooled]
    background = sum(sum(shot[1] for shot in way) / shots for way in pooled) / ways
    return [background, *of_ways]


def published_distance(features: Tensor, prototype: Tensor, scale: float = 20.0) -> Tensor:
    """(N, h, w) of (N, C, h, w) and (1, C)."""
    return F.cosine_similarity(features, prototype[..., None, None], dim=1) * scale


def published_scores(features: Tensor, prototypes: list[Tensor]) -> Tensor:
    """(N, 1 + W, h, w)."""
    return torch.stack([published_distance(features, one) for one in prototypes], dim=1)


def published_head(
    supports: Tensor,  # (B, W, K, C, h, w)
    features: Tensor,  # (B, N, C, h, w)
    foregrounds: Tensor,  # (B, W, K, H, W)
    backgrounds: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits (N * B, 1 + W, H, W) and the alignment loss."""
    size = foregrounds.shape[-2:]
    outputs, losses = [], []
    for episode in range(len(supports)):
        parts = supports[episode], foregrounds[episode], backgrounds[episode]
        scores = published_scores(features[episode], published_prototypes(*parts))
        outputs.append(F.interpolate(scores, size=size, mode="bilinear", align_corners=False))
        losses.append(published_alignment(features[episode], scores, *parts))
    logits = torch.stack(outputs, dim=1)
    return logits.flatten(0, 1), torch.stack(losses).sum() / len(losses)


def published_alignment(
    features: Tensor,  # (N, C, h, w)
    scores: Tensor,  # (N, 1 + W, h, w)
    supports: Tensor,  # (W, K, C, h, w)
    foregrounds: Tensor,  # (W, K, H, W)
    backgrounds: Tensor,
) -> Tensor:
    """The alignment loss of one episode."""
    ways, shots = supports.shape[:2]
    predicted = scores.argmax(dim=1, keepdim=True)
    masks = [predicted == number for number in range(1 + ways)]
    skipped = [way for way in range(ways) if masks[way + 1].sum() == 0]
    stacked = torch.stack(masks, dim=1).float()  # (N, 1 + W, 1, h, w)
    prototypes = torch.sum(features.unsqueeze(1) * stacked, dim=(0, 3, 4))
    prototypes = prototypes / (stacked.sum(dim=(0, 3, 4)) + 1e-5)
    loss = features.new_zeros(())
    for way in range(ways):
        if way in skipped:
            continue
        pair = [prototypes[[0]], prototypes[[way + 1]]]
        for shot in range(shots):
            small = published_scores(supports[way, [shot]], pair)
            size = foregrounds.shape[-2:]
            logits = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
            target = torch.full(size, 255, dtype=torch.long)
            target[foregrounds[way, shot] == 1] = 1
            target[backgrounds[way, shot] == 1] = 0
            loss = loss + F.cross_entropy(logits, target[None], ignore_index=255) / shots / ways
    return loss


def published_forward(
    encoder: Encoder,
    layer: str,
    images: Tensor,  # (B, W, K, 3, H, W)
    foregrounds: Tensor,  # (B, W, K, H, W)
    backgrounds: Tensor,
    query: Tensor,  # (B, N, 3, H, W)
) -> tuple[Tensor, Tensor]:
    """Logits (N * B, 1 + W, H, W) and the alignment loss of whole episodes."""
    leading, queries = images.shape[:3], query.shape[:2]
    maps = encoder(torch.cat([images.flatten(0, 2), query.flatten(0, 1)]), (layer,))[layer]
    count = leading.numel()
    return published_head(
        maps[:count].unflatten(0, leading),
        maps[count:].unflatten(0, queries),
        foregrounds,
        backgrounds,
    )
