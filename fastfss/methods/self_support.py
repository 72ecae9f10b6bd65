"""Self-support matching: prototypes gathered from the query itself.

Fan, Pei, Tai, Tang: "Self-Support Few-Shot Semantic Segmentation", ECCV 2022, section 3.

Written with masks instead of gathered positions, so that a batch needs no loop, nothing waits for a
device, and the second pass only adds the positions whose membership changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastfss.methods.prototypes import cosine_scores
from fastfss.ops import dense_match_sums, masked_average_pool
from fastfss.ops._gpu_inference import confident, weighted_maps

TEMPERATURE = 2.0  # of the attention that makes local background prototypes


@dataclass(frozen=True)
class SelfSupportConfig:
    """The constants of the published code.

    Attributes:
        foreground_threshold: positions above it (strictly) make the foreground prototype.
        background_threshold: likewise for the background.
        fallback: how many of the most probable positions stand in where none is above.
        support_weight: of the support's foreground prototype in each pass; the query's own has
            the rest.
        local_weight: of the local in the query's own background prototype; the global has the rest.
        prototype_blend: of the support's, the first pass's and the second pass's prototypes in the
            second pass.
        score_blend: of the second pass's scores in the result; the first pass's have the rest.
    """

    foreground_threshold: float = 0.7
    background_threshold: float = 0.6
    fallback: int = 12
    support_weight: float = 0.5
    local_weight: float = 0.7
    prototype_blend: tuple[float, float, float] = (0.5, 0.2, 0.3)
    score_blend: float = 0.7


@dataclass(frozen=True, eq=False)
class SelfSupportPass:
    """One pass.

    Attributes:
        selected: (B, 2, h, w) 0/1: the positions that made the foreground and the background.
        foreground_mean: (B, C), mean query feature over the selected foreground (SSFP).
        background_mean: (B, C), likewise over the background (SSBP).
        foreground: (B, C), the prototype that was matched.
        scores: (B, 2, h, w), background and foreground scores.
    """

    selected: Tensor
    foreground_mean: Tensor
    background_mean: Tensor
    foreground: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class SelfSupport:
    """The head's scores, (B, 2, h, w) each: from the support alone, of both passes, the result."""

    initial: Tensor
    first: SelfSupportPass
    second: SelfSupportPass | None
    final: Tensor


def select(scores: Tensor, config: SelfSupportConfig) -> Tensor:
    """The confident positions, (B, 2, h, w) 0/1 in the scores' dtype: foreground, background.

    Args:
        scores: (B, 2, h, w), background and foreground scores.
        config: thresholds and the fallback's size.
    """
    limits = config.foreground_threshold, config.background_threshold
    fused = confident(scores.detach(), *limits, config.fallback)
    if fused is not None:
        return fused
    probabilities = scores.detach().softmax(dim=1).flip(1).flatten(2)
    # One by one: a tensor of both would be copied from the host, which no CUDA graph captures.
    above = torch.stack([probabilities[:, i] > limit for i, limit in enumerate(limits)], dim=1)
    count = probabilities.shape[2]
    # A size that an exported graph leaves free is no int, and taken to be large enough.
    count = min(config.fallback, count) if isinstance(count, int) else config.fallback
    best = probabilities.topk(count, dim=2).indices
    fallback = torch.zeros_like(above).scatter_(2, best, True)
    chosen = above | (fallback & ~above.any(dim=2, keepdim=True))
    return chosen.to(scores.dtype).view(scores.shape)


def self_support(
    features: Tensor,
    foreground: Tensor,
    background: Tensor,
    config: SelfSupportConfig,
    refine: bool,
) -> SelfSupport:
    """SSP's head: match, gather prototypes from the query, match again.

    Args:
        features: query features (B, C, h, w).
        foreground: the support's prototype (B, C).
        background: likewise.
        config: thresholds and weights.
        refine: whether to make the second pass.

    Returns:
        All scores at feature resolution.
    """
    own, local = 1 - config.support_weight, config.local_weight
    from_support, from_first, from_second = config.prototype_blend

    initial = cosine_scores(features, foreground, background)
    selected = select(initial, config)
    means = masked_average_pool(features, selected, eps=0.0)
    fg_mean, bg_mean = means[:, 0], means[:, 1]
    # sum_j E_ij f_j and sum_j E_ij over the selected background j, E_ij = exp(2 cos(f_i, f_j)).
    sums = dense_match_sums(features, features, features, selected[:, 1], scale=TEMPERATURE)
    numerator, denominator = sums
    first_fg = config.support_weight * foreground + own * fg_mean
    constant = (1 - local) * bg_mean
    of_local = local / denominator
    first_bg = weighted_maps((numerator,), of_local, constant, features.dtype)
    if first_bg is None:
        first_bg = _blend(numerator, of_local, constant).to(features.dtype)
    scores = cosine_scores(features, first_fg, first_bg)
    first = SelfSupportPass(selected, fg_mean, bg_mean, first_fg, scores)
    if not refine:
        return SelfSupport(initial, first, None, scores)

    again = select(scores, config)
    means = masked_average_pool(features, again, eps=0.0)
    fg_mean, bg_mean = means[:, 0], means[:, 1]
    # Only the positions that entered or left the background: usually few.
    change = dense_match_sums(
        features, features, features, again[:, 1] - selected[:, 1], scale=TEMPERATURE
    )
    of_local = from_second * local / (denominator + change[1])
    second_fg = (
        from_support * foreground
        + from_first * first_fg
        + from_second * (config.support_weight * foreground + own * fg_mean)
    )
    constant = from_support * background + from_second * (1 - local) * bg_mean
    parts, blend = (numerator, change[0]), (first_bg, from_first)
    second_bg = weighted_maps(parts, of_local, constant, features.dtype, *blend)
    if second_bg is None:
        second_bg = _blend(_add(*parts), of_local, constant, reuse=True)
        second_bg = _add(second_bg, *blend).to(features.dtype)
    second_scores = cosine_scores(features, second_fg, second_bg)
    second = SelfSupportPass(again, fg_mean, bg_mean, second_fg, second_scores)
    final = config.score_blend * second_scores + (1 - config.score_blend) * scores
    return SelfSupport(initial, first, second, final)


# Maps of (B, C, h, w) are what this head's memory is made of. Without gradients nobody else looks
# at them, so that sums go where an addend was.


def _add(maps: Tensor, others: Tensor, factor: float = 1.0) -> Tensor:
    """maps + factor * others, in the place of `maps` where no gradient needs them."""
    if torch.is_grad_enabled():
        return torch.add(maps, others, alpha=factor)
    return maps.add_(others, alpha=factor)


def _blend(maps: Tensor, weights: Tensor, constant: Tensor, *, reuse: bool = False) -> Tensor:
    """maps (B, C, h, w) times weights (B, h, w), plus constant (B, C) at every position.

    `reuse` puts the result in the place of `maps` where no gradient needs them.
    """
    everywhere = constant[:, :, None, None].to(maps)
    if reuse and not torch.is_grad_enabled():
        return maps.mul_(weights.unsqueeze(1)).add_(everywhere)
    return torch.addcmul(everywhere, maps, weights.unsqueeze(1))
