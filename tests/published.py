"""The published formulations, written the way the papers' code computes them.

Slow and memory-hungry on purpose: the tests prove that the operations equal them, and the
benchmarks measure against them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssp_masked_average_pool(features: Tensor, mask: Tensor) -> Tensor:
    """SSP: the mask (B, H, W) is shrunk to the features (B, C, h, w); one prototype (B, C)."""
    size = features.shape[-2:]
    small = F.interpolate(mask.unsqueeze(1), size=size, mode="bilinear", align_corners=True)
    return torch.sum(features * small, dim=(2, 3)) / (small.sum(dim=(2, 3)) + 1e-5)


def panet_masked_average_pool(features: Tensor, mask: Tensor) -> Tensor:
    """PANet and MLC: the features (B, C, h, w) are enlarged to the mask (B, H, W)."""
    size = mask.shape[-2:]
    large = F.interpolate(features, size=size, mode="bilinear", align_corners=True)
    weights = mask.unsqueeze(1)
    return torch.sum(large * weights, dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-5)


def cosine_scores(features: Tensor, prototypes: list[Tensor]) -> Tensor:
    """SSP, MLC, PANet: ten times the cosine with each (B, C) or (B, C, h, w), one call each."""
    maps = [p if p.ndim == 4 else p[..., None, None] for p in prototypes]
    scores = [F.cosine_similarity(features, one, dim=1) * 10 for one in maps]
    return torch.stack(scores, dim=1)


def hsnet_correlation(queries: list[Tensor], supports: list[Tensor]) -> Tensor:
    """HSNet: normalise, multiply, clamp, stack, each in its own buffer; (B, L, hq, wq, hs, ws)."""
    correlations = []
    for query, support in zip(queries, supports, strict=True):
        batch, channels, hs, ws = support.shape
        support = support.view(batch, channels, -1)
        support = support / (support.norm(dim=1, p=2, keepdim=True) + 1e-5)
        _, _, hq, wq = query.shape
        query = query.view(batch, channels, -1)
        query = query / (query.norm(dim=1, p=2, keepdim=True) + 1e-5)
        correlation = torch.bmm(query.transpose(1, 2), support).view(batch, hq, wq, hs, ws)
        correlations.append(correlation.clamp(min=0))
    return torch.stack(correlations).transpose(0, 1).contiguous()


def pfenet_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """PFENet's prior before its rescaling: (B, h, w) from (B, C, h, w) twice and (B, h, w).

    The largest cosine over all support positions; those outside of the object are blanked, so that
    their cosine is 0.
    """
    q, s = query.flatten(2), (support * mask.unsqueeze(1)).flatten(2)
    norms = s.norm(dim=1).unsqueeze(2) @ q.norm(dim=1).unsqueeze(1)
    cosine = s.transpose(1, 2) @ q / (norms + 1e-7)
    return cosine.amax(dim=1).view(len(query), *query.shape[2:])


def dcama_attention(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """One head of DCAMA: (B, 1, h, w) from (B, C, h, w) twice and the mask (B, 1, h, w)."""
    q, s = query.flatten(2), support.flatten(2)
    logits = q.transpose(1, 2) @ s / query.shape[1] ** 0.5
    weighted = logits.softmax(dim=2) @ mask.flatten(2).transpose(1, 2)
    return weighted.view(len(query), 1, *query.shape[2:])
