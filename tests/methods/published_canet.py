"""CANet's evaluation forward as published: the yardstick for speed, and an oracle.

Everything that the published code computes is computed: layer4, which nobody reads; the supports,
for every query again; each shot by itself through the whole head; the unchanged channels of
`fuse_history`'s input in every refinement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.methods import CANet
from fastfss.methods.embedding import EmbeddingSegmenter
from tests.methods.published_aspp import published_aspp


def published_embedding(model: EmbeddingSegmenter, images: Tensor) -> Tensor:
    """Embedded maps (B, 256, h, w); all maps of the encoder are computed."""
    maps = model.encoder(images)
    size = maps[model.layers[0]].shape[-2:]
    # Published backbones give both maps one size; other encoders' are brought to the first one's.
    chosen = [
        F.interpolate(maps[name], size, mode="bilinear", align_corners=True)
        if maps[name].shape[-2:] != size
        else maps[name]
        for name in model.layers
    ]
    embedded: Tensor = model.embedding(torch.cat(chosen, dim=1))
    return embedded


def published_residual(block: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x + block(x))


def published_canet_head(
    model: CANet,
    query: Tensor,  # (B, 256, h, w)
    supports: list[Tensor],  # K times (B, 256, h, w)
    masks: list[Tensor],  # K times (B, H, W)
) -> Tensor:  # (B, 2, h, w)
    size = query.shape[-2:]
    total = torch.zeros(())
    for support, mask in zip(supports, masks, strict=True):
        small = F.interpolate(
            (mask == 1).to(support.dtype).unsqueeze(1), size, mode="bilinear", align_corners=True
        )
        area = small.mean(dim=(2, 3)) * size[0] * size[1] + 0.0005
        prototype = (small * support).sum(dim=(2, 3)) / area
        spread = prototype[:, :, None, None].expand_as(query)
        fused = model.fuse(torch.cat([query, spread], dim=1))
        history = query.new_zeros(query.shape[0], 2, *size)
        for _ in range(model.refine_time):
            x = F.relu(model.fuse_history(torch.cat([fused, history], dim=1)) + fused)
            x = published_residual(model.residual1, x)
            x = published_residual(model.residual2, x)
            history = model.classifier(published_aspp(model.aspp, x))
        total = total + history
    return total / len(supports)


def published_canet(
    model: CANet, supports: list[Tensor], masks: list[Tensor], query: Tensor
) -> Tensor:
    """Logits (B, 2, H, W) of an episode: K supports (B, 3, H, W) with masks, one query."""
    embedded = published_embedding(model, query)
    shots = [published_embedding(model, support) for support in supports]
    logits = published_canet_head(model, embedded, shots, masks)
    return F.interpolate(logits, query.shape[-2:], mode="bilinear", align_corners=True)
