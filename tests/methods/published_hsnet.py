"""HSNet the way its code computes it: every shot from the images, 4D maps reordered around each
convolution, group norm on contiguous maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.methods import HSNet
from fastfss.methods.hypercorrelation import (
    CenterPivotConv4d,
    HypercorrelationEncoder,
    HypercorrelationLearner,
)
from tests.published import hsnet_correlation


def published_conv4d(x: Tensor, conv: CenterPivotConv4d) -> Tensor:
    """Prune, convolve over the query, convolve over the support, each on a reordered copy."""
    batch, inputs, ha, wa, hb, wb = x.shape
    pruned = x[..., :: conv.stride, :: conv.stride]
    grid = pruned.shape[4:]
    first = pruned.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, inputs, ha, wa)
    first = conv.conv1(first)
    first = first.view(batch, *grid, -1, ha, wa).permute(0, 3, 4, 5, 1, 2).contiguous()
    second = x.permute(0, 2, 3, 1, 4, 5).contiguous().view(-1, inputs, hb, wb)
    second = conv.conv2(second)
    second = second.view(batch, ha, wa, -1, *grid).permute(0, 3, 1, 2, 4, 5).contiguous()
    return first + second


def published_block(x: Tensor, block: nn.Sequential) -> Tensor:
    for part in block:
        if isinstance(part, CenterPivotConv4d):
            x = published_conv4d(x, part)
        elif isinstance(part, nn.GroupNorm):
            x = F.group_norm(x, part.num_groups, part.weight, part.bias, part.eps)
        else:
            x = F.relu(x)
    return x


def published_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    batch, channels, ha, wa, hb, wb = x.shape
    maps = x.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, channels, ha, wa)
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    return maps.view(batch, hb, wb, channels, *size).permute(0, 3, 4, 5, 1, 2).contiguous()


def published_encoder(learner: HypercorrelationEncoder, levels: Sequence[Tensor]) -> Tensor:
    """The map (B, 128, h, w) of the levels at strides 8, 16, 32."""
    level2, level3, level4 = (
        published_block(level, block)
        for level, block in zip(
            levels,
            (learner.encoder_layer2, learner.encoder_layer3, learner.encoder_layer4),
            strict=True,
        )
    )
    size = (level3.shape[2], level3.shape[3])
    mixed = published_block(published_resize(level4, size) + level3, learner.encoder_layer4to3)
    size = (level2.shape[2], level2.shape[3])
    mixed = published_block(published_resize(mixed, size) + level2, learner.encoder_layer3to2)
    batch, channels, height, width = mixed.shape[:4]
    return mixed.view(batch, channels, height, width, -1).mean(dim=-1)


def published_learner(learner: HypercorrelationLearner, levels: Sequence[Tensor]) -> Tensor:
    """Logits (B, 2, 2w, 2w) of the levels at strides 8, 16, 32."""
    encoded = published_encoder(learner, levels)
    width = encoded.shape[3]
    decoded = learner.decoder1(encoded)
    enlarged = F.interpolate(decoded, (2 * width, 2 * width), mode="bilinear", align_corners=True)
    logits: Tensor = learner.decoder2(enlarged)
    return logits


def published_shot(model: HSNet, image: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """Labels (B, H, W) of one shot, query and support encoded for it."""
    queries, supports = model.encoder(query), model.encoder(image)
    masked = {}
    for name, one in supports.items():
        small = F.interpolate(
            mask.unsqueeze(1).float(), one.shape[2:], mode="bilinear", align_corners=True
        )
        masked[name] = one * small.to(one.dtype)
    levels = [
        hsnet_correlation([queries[n].clone() for n in level], [masked[n] for n in level])
        for level in model.levels
    ]
    logits = published_learner(model.hpn_learner, levels)
    logits = F.interpolate(logits, query.shape[2:], mode="bilinear", align_corners=True)
    return logits.argmax(dim=1)


@torch.no_grad()
def published_predict(
    model: HSNet, images: Sequence[Tensor], masks: Sequence[Tensor], query: Tensor
) -> Tensor:
    """Labels (B, H, W): each shot on its own, query and support encoded for each; then votes."""
    votes = torch.zeros(query.shape[0], *query.shape[2:], device=query.device)
    for image, mask in zip(images, masks, strict=True):
        votes += published_shot(model, image, mask, query)
    if len(images) == 1:
        return votes.long()
    most = votes.flatten(1).amax(dim=1).clamp_min(1).view(-1, 1, 1)
    return (votes / most >= 0.5).long()
