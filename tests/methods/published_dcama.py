"""DCAMA the way its code computes it: the whole attention matrix of every map and shot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.methods import DCAMA
from fastfss.methods.dcama import HEADS, MaskAggregation, MaskAttention


def position_encoding(positions: int, channels: int) -> Tensor:
    """(N, C), entry by entry from the formula."""
    table = torch.zeros(positions, channels, dtype=torch.float64)
    index = torch.arange(positions, dtype=torch.float64)
    for i in range(0, channels, 2):
        table[:, i] = (index * 10000 ** (-i / channels)).sin()
        table[:, i + 1] = (index * 10000 ** (-i / channels)).cos()
    return table.float()


def published_attention(
    block: MaskAttention, query: Tensor, supports: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    """(B, h, w): one map of the query against that of all shots."""
    batch, channels, height, width = query.shape
    depth = channels // HEADS
    encoding = position_encoding(height * width, channels)

    def heads(tokens: Tensor, linear: torch.nn.Module) -> Tensor:
        projected = linear(tokens)
        return projected.view(batch, -1, HEADS, depth).transpose(1, 2)

    q = heads(query.flatten(2).transpose(1, 2) + encoding, block.linears[0])
    tokens = [support.flatten(2).transpose(1, 2) + encoding for support in supports]
    k = heads(torch.cat(tokens, dim=1), block.linears[1])
    resized = [
        F.interpolate(m.unsqueeze(1).float(), (height, width), mode="bilinear", align_corners=True)
        for m in masks
    ]
    v = torch.cat([one.flatten(2) for one in resized], dim=2).transpose(1, 2)  # (B, M, 1)
    attention = (q @ k.transpose(2, 3) / depth**0.5).softmax(dim=3)
    weighted = attention @ v.unsqueeze(1)  # (B, heads, N, 1)
    return weighted.mean(dim=1).view(batch, height, width)


@torch.no_grad()
def published_forward(
    model: DCAMA, images: Sequence[Tensor], masks: Sequence[Tensor], query: Tensor
) -> Tensor:
    """Logits (B, 2, H, W); the supports are encoded with every query."""
    queries = model.encoder(query)
    supports = [model.encoder(image) for image in images]
    coarse = []
    for stage, block in zip(model.stages, model.model.blocks, strict=True):
        maps = [
            published_attention(block, queries[name], [one[name] for one in supports], masks)
            for name in stage.layers
        ]
        coarse.append(torch.stack(maps, dim=1))
    skips = [
        (queries[name], torch.stack([one[name] for one in supports]).amax(dim=0))
        for name in model.skips
    ]
    return published_decoder(model.model, coarse, *skips)


def published_decoder(
    decoder: MaskAggregation,
    coarse: Sequence[Tensor],  # (B, L, h, w) of strides 8, 16, 32
    fine: tuple[Tensor, Tensor],  # query and support (B, C, h, w), stride 8
    finest: tuple[Tensor, Tensor],  # likewise, stride 4
) -> Tensor:
    """Logits (B, 2, 4h, 4w), h x w of stride 4, of all maps next to each other."""

    def resized(x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)

    def doubled(x: Tensor) -> Tensor:
        return resized(x, [2 * side for side in x.shape[-2:]])

    two, three, four = coarse
    y = decoder.conv1(four)
    y = decoder.conv4(resized(y, three.shape[-2:]) + decoder.conv2(three))
    y = decoder.conv5(resized(y, two.shape[-2:]) + decoder.conv3(two))
    y = doubled(torch.cat([y, *fine], dim=1))
    if y.shape[-2:] != finest[0].shape[-2:]:
        y = resized(y, finest[0].shape[-2:])
    y = decoder.mixer2(doubled(decoder.mixer1(torch.cat([y, *finest], dim=1))))
    logits: Tensor = decoder.mixer3(doubled(y))
    return logits
