"""MLC's baseline forward as published: the yardstick for speed and memory, and an oracle.

Each support alone through the encoder, per query; its features enlarged to the mask, once for the
foreground and once for the background; one cosine a prototype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder
from tests.published import cosine_scores, panet_masked_average_pool


def published_forward(
    encoder: Encoder, layer: str, supports: list[Tensor], masks: list[Tensor], query: Tensor
) -> Tensor:
    """Logits (B, 2, H, W) of an episode: K supports (B, 3, H, W) with masks, one query."""
    shots = [encoder(image, (layer,))[layer] for image in supports]
    features = encoder(query, (layer,))[layer]
    foreground, background = (
        torch.stack(
            [
                panet_masked_average_pool(one, (mask == value).float())
                for one, mask in zip(shots, masks, strict=True)
            ]
        ).mean(dim=0)
        for value in (1, 0)
    )
    scores = cosine_scores(features, [background, foreground])
    return F.interpolate(scores, query.shape[-2:], mode="bilinear", align_corners=True)
