"""How methods whose classes compete with each other segment several."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.methods.prediction import Prediction


def merge_ways(
    pairs: Tensor,  # (B, W, 2, H, W'): background and foreground logit of each way
) -> Prediction:
    """The rule of CANet and PGNet: one background for all, the largest of the ways' own.

        scores = [max_i background_i, foreground_1, ..., foreground_W]

    One way keeps its own pair.
    """
    backgrounds, foregrounds = pairs.unbind(dim=2)
    return prediction_of(torch.cat([backgrounds.amax(dim=1, keepdim=True), foregrounds], dim=1))


def prediction_of(
    scores: Tensor,  # (B, 1 + W, H, W'): the background's logit, then each way's
) -> Prediction:
    """A way's margin is its logit minus the largest of the others."""
    return Prediction(scores, scores[:, 1:] - largest_other(scores))


def largest_other(
    scores: Tensor,  # (B, 1 + W, H, W')
) -> Tensor:  # (B, W, H, W')
    """For each way the largest score of the background and the other ways."""
    if scores.shape[1] == 2:
        return scores[:, :1]
    top, at = scores.max(dim=1, keepdim=True)
    second = scores.scatter(1, at, -torch.inf).amax(dim=1, keepdim=True)
    own = torch.arange(1, scores.shape[1], device=scores.device)[:, None, None]
    return torch.where(at == own, second, top)
