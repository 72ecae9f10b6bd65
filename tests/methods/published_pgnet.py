"""PGNet's evaluation forward as published: the yardstick for speed and memory, and an oracle.

Everything that the published code computes is computed: layer4, which nobody reads; the supports,
for every query again; the attention maps of all four units, in memory, over all support positions;
the fourth unit's softmax, which is overwritten.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods import PGNet
from fastfss.methods.graph_attention import GraphAttention
from tests.methods.published_aspp import published_aspp
from tests.methods.published_canet import published_embedding, published_residual


def published_unit(
    unit: GraphAttention,
    query: Tensor,  # (B, 256, hq, wq)
    supports: list[Tensor],  # K times (B, 256, h, w), masked
    values: list[Tensor],  # K times (B, 256, h, w)
    query_values: Tensor,  # (B, 256, h, w)
    *,
    uniform: bool,
) -> Tensor:  # (B, 256, hq, wq)
    batch, channels, height, width = query.shape
    phi = unit.phi(query).flatten(2).transpose(1, 2)
    theta = torch.cat([unit.theta(one).flatten(2) for one in supports], dim=2)
    attention = (phi @ theta).softmax(dim=2)
    if uniform:
        # As published, behind autograd's back: the softmax's gradient uses what lies there now.
        attention.data.fill_(1 / (supports[0].shape[2] * supports[0].shape[3]))
    value = torch.cat([one.flatten(2) for one in values], dim=2).transpose(1, 2)
    attended = (attention @ value).contiguous().view(batch, channels, height, width)
    own = F.adaptive_avg_pool2d(query_values, (height, width))
    out: Tensor = unit.Phi(torch.cat([attended, own], dim=1))
    return out


def published_pgnet_head(
    model: PGNet,
    query: Tensor,  # (B, 256, h, w)
    supports: list[Tensor],  # K times (B, 256, h, w)
    masks: list[Tensor],  # K times (B, H, W)
) -> Tensor:  # (B, 2, h, w)
    size = query.shape[-2:]
    masked = []
    for support, mask in zip(supports, masks, strict=True):
        small = F.interpolate((mask == 1).to(support.dtype).unsqueeze(1), size, mode="nearest")
        masked.append(small * support + 0.0005)
    values = [model.g(one) for one in masked]
    query_values = model.g(query)
    units = (model.gau_1, model.gau_2, model.gau_3, model.gau_4)
    total = torch.zeros(())
    for number, (unit, divisor) in enumerate(zip(units, (4, 2, 1, 1), strict=True)):
        pooled = F.adaptive_avg_pool2d(query, (size[0] // divisor, size[1] // divisor))
        maps = published_unit(unit, pooled, masked, values, query_values, uniform=number == 3)
        total = total + F.interpolate(maps, size, mode="bilinear", align_corners=False)
    for block in (model.residual1, model.residual2, model.residual3):
        total = published_residual(block, total)
    out: Tensor = model.classifier(published_aspp(model.aspp, total))
    return out


def published_pgnet(
    model: PGNet, supports: list[Tensor], masks: list[Tensor], query: Tensor
) -> Tensor:
    """Logits (B, 2, H, W) of an episode: K supports (B, 3, H, W) with masks, one query."""
    embedded = published_embedding(model, query)
    shots = [published_embedding(model, support) for support in supports]
    logits = published_pgnet_head(model, embedded, shots, masks)
    return F.interpolate(logits, query.shape[-2:], mode="bilinear", align_corners=True)
