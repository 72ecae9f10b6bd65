"""How CANet and PGNet, published for one class, segment several."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.methods.base import Prediction


def merge_ways(
    pairs: Tensor,  # (B, W, 2, H, W'): background and foreground logit of each way
) -> Prediction:
    """The published rule: one background for all, the largest of the ways' own.

        scores = [max_i background_i, foreground_1, ..., foreground_W]

    A way's margin is its foreground minus the largest other score. One way keeps its own pair.
    """
    if pairs.shape[1] == 1:
        return Prediction.from_pairs([pairs[:, 0]])
    foregrounds = pairs[:, :, 1]
    scores = torch.cat([pairs[:, :, 0].amax(dim=1, keepdim=True), foregrounds], dim=1)
    top, at = scores.max(dim=1, keepdim=True)
    second = scores.scatter(1, at, -torch.inf).amax(dim=1, keepdim=True)
    own = torch.arange(1, scores.shape[1], device=scores.device)[:, None, None]
    return Prediction(scores, foregrounds - torch.where(at == own, second, top))
