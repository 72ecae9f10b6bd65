"""The training of the default weights' head."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods.cue_fusion import CueFusion, Support
from fastfss.methods.features import Features
from fastfss.training.default_weights.episodes import Batch, Episodes, targets
from fastfss.training.default_weights.views import LABEL_SIDE, SIDE

BATCH = 8
RATE = 1e-3
CLICKED = 0.35  # of the steps
MOST_CLICKS = 8
MARKED = 3.0  # how much more a clicked pixel counts
CALIBRATION = 10  # batches


def forward(model: CueFusion, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (B, 160, 160) and presence (B,)."""
    logits, presence = model.decode(*inputs(model, batch), batch.hints)
    return F.interpolate(logits, (LABEL_SIDE, LABEL_SIDE), mode="bilinear")[:, 0], presence


def inputs(model: CueFusion, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Support]]:
    """The query's maps, and the shots at the grid of each."""
    features = [Features(model.embedded(maps), (SIDE, SIDE)) for maps in batch.shots]
    task = model.support_from(features, batch.shot_masks)
    same = batch.query is batch.shots[0]
    maps = dict(features[0].maps) if same else model.embedded(batch.query)
    return maps, {name: model.support(task, name, maps[name]) for name in model.matched}


def loss_of(logits: Tensor, presence: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy and soft IoU of the mask, and cross-entropy of the presence."""
    truth, weight = targets(batch.query_mask)
    counted = weight * (1 + MARKED * batch.hints[:, 1:].amax(dim=1))
    pixels = F.binary_cross_entropy_with_logits(logits, truth, counted, reduction="sum")
    mask = pixels / counted.sum()
    p = logits.sigmoid() * weight
    both = (p * truth).sum(dim=(1, 2))
    either = (p + truth * weight).sum(dim=(1, 2)) - both
    shown = (truth * weight).sum(dim=(1, 2)) > 0
    overlap = ((1 - both / either.clamp_min(1)) * shown).sum() / shown.sum().clamp_min(1)
    there = F.binary_cross_entropy_with_logits(presence, shown.float())
    return mask + overlap + 0.2 * there


def train(
    model: CueFusion,
    episodes: Episodes,
    steps: int,
    seed: int,
    report: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
) -> None:
    """Train the head in place; the encoder's maps are those of the views.

    Args:
        model: with the encoder of the views.
        episodes: what to train on.
        steps: of 8 episodes.
        seed: of the order of kinds, and of the dropout.
        report: called every 50 steps with the step, the mean loss, and the seconds so far.
    """
    rng = random.Random(f"training {seed}")
    torch.manual_seed(seed)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-2)
    with torch.no_grad():
        usual = [inputs(model, episodes.few_shot(BATCH)) for _ in range(CALIBRATION)]
        model.decoder.calibrate([model.cues(*one) for one in usual])
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(max(0.0, 1 - 20 / steps))
    )
    started, losses = time.monotonic(), []
    model.train()
    model.encoder.eval()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        if rng.random() < CLICKED:
            batch = episodes.clicked(BATCH)
            for _ in range(rng.randrange(MOST_CLICKS)):
                with torch.no_grad():
                    logits, _ = forward(model, batch)
                batch = episodes.corrected(batch, logits, sure=rng.random() < 0.8)
        else:
            batch = episodes.few_shot(BATCH)
        loss = loss_of(*forward(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averaged.update_parameters(model)
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            report(step + 1, sum(losses[-50:]) / 50, time.monotonic() - started)
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
