"""SSP's evaluation forward as published: the yardstick for speed and memory, and an oracle.

Everything that the published code computes is computed, what nobody uses included: each support
alone through the encoder, per query; both sets of local prototypes; a loop over the batch; boolean
indexing; the N x N similarity in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders import Encoder
from tests.published import cosine_scores, ssp_masked_average_pool

SELECTED = tuple[Tensor, Tensor]


def published_selection(probabilities: Tensor, threshold: float) -> Tensor:
    """(N,) -> bool (N,): above the threshold, or the 12 largest where none is."""
    above = probabilities > threshold
    if above.sum() > 0:
        return above
    return torch.zeros_like(above).index_fill_(0, probabilities.topk(12).indices, True)


def published_self_support(
    features: Tensor, scores: Tensor, selected: list[SELECTED] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes from the query: SSFP (B, C, 1, 1), SSBP (B, C, 1, 1), ASBP (B, C, h, w).

    Args:
        features: (B, C, h, w).
        scores: (B, 2, h, w).
        selected: the positions to take instead of those that the scores choose.
    """
    batch, channels, height, width = features.shape
    probabilities = scores.softmax(dim=1).flatten(2)
    foregrounds, backgrounds, local_backgrounds = [], [], []
    for item in range(batch):
        flat = features[item].flatten(1)  # (C, N)
        if selected is None:
            chosen = (
                published_selection(probabilities[item, 1], 0.7),
                published_selection(probabilities[item, 0], 0.6),
            )
        else:
            chosen = selected[item]
        local = []
        for positions in chosen:
            members = flat[:, positions]
            member_units = members / members.norm(dim=0, keepdim=True)
            units = flat / flat.norm(dim=0, keepdim=True)
            similarity = 2.0 * (units.t() @ member_units)
            local.append(similarity.softmax(dim=1) @ members.t())  # (N, C); the first is never used
        foregrounds.append(flat[:, chosen[0]].mean(dim=1))
        backgrounds.append(flat[:, chosen[1]].mean(dim=1))
        local_backgrounds.append(local[1].t().reshape(channels, height, width))
    means = [torch.stack(m)[:, :, None, None] for m in (foregrounds, backgrounds)]
    return means[0], means[1], torch.stack(local_backgrounds)


def published_head(
    features: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    refine: bool = True,
    selected: Sequence[list[SELECTED] | None] = (None, None),
) -> Tensor:
    """SSP's low-resolution scores (B, 2, h, w) from features and prototypes (B, C).

    `selected` forces the positions of each of the two passes.
    """
    fp, bp = foreground[:, :, None, None], background[:, :, None, None]
    initial = cosine_scores(features, [bp, fp])
    ssfp, ssbp, asbp = published_self_support(features, initial, selected[0])
    fp1, bp1 = 0.5 * fp + 0.5 * ssfp, 0.3 * ssbp + 0.7 * asbp
    first = cosine_scores(features, [bp1, fp1])
    if not refine:
        return first
    ssfp, ssbp, asbp = published_self_support(features, first, selected[1])
    fp2, bp2 = 0.5 * fp + 0.5 * ssfp, 0.3 * ssbp + 0.7 * asbp
    fp2 = 0.5 * fp + 0.2 * fp1 + 0.3 * fp2
    bp2 = 0.5 * bp + 0.2 * bp1 + 0.3 * bp2
    return 0.7 * cosine_scores(features, [bp2, fp2]) + 0.3 * first


def published_forward(
    encoder: Encoder,
    layer: str,
    supports: list[Tensor],
    masks: list[Tensor],
    query: Tensor,
    *,
    refine: bool = True,
    selected: Sequence[list[SELECTED] | None] = (None, None),
) -> Tensor:
    """Logits (B, 2, H, W) of an episode: K supports (B, 3, H, W) with masks, one query."""
    shots = [encoder(image, (layer,))[layer] for image in supports]
    features = encoder(query, (layer,))[layer]
    pairs = zip(shots, masks, strict=True)
    pooled = [[ssp_masked_average_pool(f, (m == v).float()) for v in (1, 0)] for f, m in pairs]
    foreground, background = (torch.stack(side).mean(dim=0) for side in zip(*pooled, strict=True))
    scores = published_head(features, foreground, background, refine=refine, selected=selected)
    return F.interpolate(scores, query.shape[-2:], mode="bilinear", align_corners=True)
