"""Rectified prototypes: less biased by the one image that they come from.

Yang et al., ICCV 2021. There is no public code of this part; what the paper's description leaves
open is an option of `Rectification`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.data.masks import IGNORED
from fastfss.errors import expected


@dataclass(frozen=True)
class Rectification:
    """How prototypes are rectified; a weight of 0 switches a part off.

    Attributes:
        background: b in (1 - b) BP + b G, with G the global background prototype.
        momentum: m in G <- m G + (1 - m) BP at every training step. The first steps take the plain
            mean of all backgrounds so far, until its own momentum 1 - 1 / step reaches m.
        foreground: f in (1 - f) FP + f R, with R the mean of similar regions of additional images,
            weighted by their cosine with FP. Without such regions FP stays.
        regions: so many regions at most, the most similar ones.
        min_similarity: regions with a lower cosine do not count.
    """

    background: float = 0.5
    momentum: float = 0.999
    foreground: float = 0.25
    regions: int = 10
    min_similarity: float = 0.5

    def __post_init__(self) -> None:
        for name in ("background", "momentum", "foreground"):
            if not 0 <= getattr(self, name) <= 1:
                raise expected(name, "0 to 1", str(getattr(self, name)))
        if self.regions < 1:
            raise expected("regions", "at least 1", str(self.regions))
        # Weights are cosines, which must not be negative.
        if not 0 <= self.min_similarity <= 1:
            raise expected("min_similarity", "a cosine, 0 to 1", str(self.min_similarity))


class Rectifier(nn.Module):
    """Rectifies prototypes; in training mode it also keeps the global background up to date.

    Args:
        config: the weights.
        channels: C.

    Attributes:
        background: (C,), G.
        updates: int64, the training steps that G has seen; without any, nothing is blended.
        regions: (R, C), prototypes of regions of additional images; none to begin with.
    """

    background: Tensor
    updates: Tensor
    regions: Tensor

    def __init__(self, config: Rectification, channels: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("background", torch.zeros(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("regions", torch.zeros(0, channels))

    def forward(self, prototypes: Tensor) -> Tensor:
        """(B, K, 2, C), foreground and background of every shot, to the same rectified."""
        foreground, background = prototypes.unbind(dim=2)
        if self.training:
            self.observe(background)
        pair = self.rectified_foreground(foreground), self.rectified_background(background)
        return torch.stack(pair, dim=2)

    @torch.no_grad()
    def observe(self, background: Tensor) -> None:
        """Take the mean of backgrounds (..., C) into the moving average."""
        seen = background.flatten(0, -2).mean(dim=0).to(self.background.dtype)
        kept = (self.updates / (self.updates + 1)).clamp_max(self.config.momentum)
        self.background.lerp_(seen, 1 - kept)
        self.updates += 1

    def rectified_background(self, background: Tensor) -> Tensor:
        """(..., C): blended with the global background."""
        weight = self.config.background * (self.updates > 0).to(background.dtype)
        return (1 - weight) * background + weight * self.background.to(background.dtype)

    def rectified_foreground(self, foreground: Tensor) -> Tensor:
        """(..., C): blended with the regions that resemble it.

        w_r = cos(FP, r), 0 below min_similarity; R = sum w_r r / sum w_r.
        """
        count = min(self.config.regions, len(self.regions))
        if count == 0 or self.config.foreground == 0:
            return foreground
        regions = self.regions.to(foreground.dtype)
        cosine = F.normalize(foreground, dim=-1) @ F.normalize(regions, dim=-1).T
        weights, chosen = cosine.topk(count, dim=-1)  # (..., count)
        weights = weights * (weights >= self.config.min_similarity)
        total = weights.sum(dim=-1, keepdim=True)
        mean = (weights.unsqueeze(-1) * regions[chosen]).sum(dim=-2) / total.clamp_min(1e-12)
        blend = self.config.foreground * (total > 0).to(foreground.dtype)
        return (1 - blend) * foreground + blend * mean


def region_prototypes(features: Tensor, labels: Tensor, min_positions: int) -> Tensor:
    """The means of features over the regions of label maps.

    Args:
        features: (B, C, h, w).
        labels: (B, h, w) integers; positions of one label and image are a region, 0 and 255 none.
        min_positions: smaller regions are left out.

    Returns:
        (R, C), one row a region.
    """
    flat = labels.long().flatten(1)
    flat = flat.masked_fill(flat == IGNORED, 0)
    regions = F.one_hot(flat)[:, :, 1:].to(features.dtype)  # (B, N, labels)
    counts = regions.sum(dim=1)
    sums = torch.einsum("bcn,bnr->brc", features.flatten(2), regions)
    return (sums / counts.clamp_min(1).unsqueeze(2))[counts >= max(min_positions, 1)]
