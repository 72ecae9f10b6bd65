"""HSNet's correlation as published: normalise, multiply, clamp, stack, each with its own buffer."""

from __future__ import annotations

import torch
from torch import Tensor


def published_correlation(queries: list[Tensor], supports: list[Tensor]) -> Tensor:
    """(B, L, hq, wq, hs, ws) of L maps (B, C, hq, wq) and (B, C, hs, ws); eps 1e-5."""
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
