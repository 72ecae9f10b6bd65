"""What is fixed after training, on classes that training did not see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.data.masks import IGNORED
from fastfss.methods.cue_fusion import CueFusion
from fastfss.training.default_weights.episodes import Batch, Episodes
from fastfss.training.default_weights.loop import BATCH, forward

SHIFTS = tuple(0.25 * step for step in range(-4, 13))
EPISODES = 160


def calibration_of(model: CueFusion, episodes: Episodes) -> tuple[float, float, float]:
    """The shift of the masks' logits, the slope and the offset of the logit of presence.

    Args:
        model: trained without the classes of the episodes.
        episodes: of held-out classes.
    """
    masks = [episodes.few_shot(BATCH, absent=0, prior=0) for _ in range(EPISODES // BATCH)]
    mixed = [episodes.few_shot(BATCH, absent=0.5, prior=0) for _ in range(EPISODES // BATCH)]
    with torch.inference_mode():
        overlaps = torch.cat([_overlaps(forward(model, batch)[0], batch) for batch in masks])
        said = torch.cat([forward(model, batch)[1] for batch in mixed])
    present = torch.cat([batch.present for batch in mixed])
    # The best shift by the mean IoU, and of those that are as good but for noise the smallest.
    means = overlaps.mean(dim=0)
    good = [shift for shift, mean in zip(SHIFTS, means, strict=True) if mean > means.max() - 0.002]
    slope, offset = logistic(said, present)
    return min(good, key=abs), slope, offset


def logistic(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """Slope and offset that make scores the logits of their truth (Platt 1999).

    Args:
        scores: (N,).
        truth: (N,) bool.
    """
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = scores.double() * line[0] + line[1]
        loss = (
            F.binary_cross_entropy_with_logits(logits, truth.double()) + 1e-4 * line.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = line.detach().tolist()
    return slope, offset


def area_under_curve(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """The share of pairs, one true and one false, that the scores bring into the right order."""
    values, here = torch.tensor(scores), torch.tensor(truth)
    true, false = values[here], values[~here]
    over = (true[:, None] > false).double() + 0.5 * (true[:, None] == false).double()
    return float(over.mean())


def _overlaps(logits: Tensor, batch: Batch) -> Tensor:
    """(B, shifts) IoU."""
    known, truth = batch.query_mask != IGNORED, batch.query_mask == 1
    found = torch.stack([logits + shift > 0 for shift in SHIFTS], dim=1) & known[:, None]
    both = (found & truth[:, None]).sum(dim=(2, 3))
    either = (found | (truth & known)[:, None]).sum(dim=(2, 3))
    return both / either.clamp_min(1)
