"""The guided networks as published: the yardstick for speed, and an oracle. Batches of one.

Everything that the published code computes is computed: 64x64 convolutions for the annotation and
for the decoder, guidance tiled over the map and concatenated with the query's features for every
annotation value, a running mean over the shots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.encoders.fcn_vgg import FCNVGG
from fastfss.methods.guided import GuidedLate
from fastfss.methods.guided_early import GuidedEarly
from fastfss.methods.guided_parts import PairHead, fixed_annotation_kernel, fixed_decoder_kernel
from fastfss.methods.interactive import InteractiveEarly, InteractiveLate

Shots = Sequence[tuple[Tensor, Tensor]]  # images (1, 3, H, W), label maps (1, H, W)


def published_encoder(encoder: FCNVGG, images: Tensor) -> Tensor:
    """(1, C, h, w): fc6, or fc7 where the encoder has it."""
    state = encoder.state_dict()
    x = images
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for place in range(1, convolutions + 1):
            name = f"conv{block}_{place}"
            padding = 81 if name == "conv1_1" else 1
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding).relu()
        x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
    for name in ("fc6", "fc7"):
        if f"{name}.weight" in state:
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    return x


def channels_of(labels: Tensor, values: int) -> Tensor:
    """(1, A, H, W)."""
    return torch.stack([(labels == value).float() for value in range(values)], dim=1)


def published_mass(annotation: Tensor, kernel: Tensor | None = None) -> Tensor:
    """Weights (A, 1, h, w) of an annotation (1, A, H, W)."""
    kernel = fixed_annotation_kernel() if kernel is None else kernel
    padded = F.pad(annotation.transpose(0, 1), (0, 31, 0, 31))
    mass = F.conv2d(padded, kernel, stride=32)
    return mass / (1e-6 + mass.sum((2, 3), keepdim=True))


def published_decoder(
    scores: Tensor, size: tuple[int, int], kernel: Tensor | None = None
) -> Tensor:
    """Scores (1, A, h, w) at the image's size; the published kernel of A channels is dense."""
    kernel = fixed_decoder_kernel(scores.shape[1]) if kernel is None else kernel
    return F.conv_transpose2d(scores, kernel, stride=32)[:, :, : size[0], : size[1]]


def published_head(head: PairHead, stacked: Tensor) -> Tensor:
    hidden = F.conv2d(stacked, head.fc7.weight, head.fc7.bias).relu()
    return F.conv2d(hidden, head.score.weight, head.score.bias)


def published_guide(
    encoder: FCNVGG, shots: Shots, values: int, *, short_circuit: bool = True
) -> Tensor:
    """z (A, C), the running mean."""
    guidance: Tensor | None = None
    counts = torch.zeros(values, 1)
    for image, labels in shots:
        features = published_encoder(encoder, image)
        if guidance is None:
            guidance = torch.zeros(values, features.shape[1])
        annotation = channels_of(labels, values)
        active = [k for k in range(values) if annotation[0, k].sum() > 0]
        if not active and short_circuit:
            return guidance
        weights = published_mass(annotation)
        for k in active:
            counts[k] += 1
            vector = (features * weights[k]).sum((2, 3))[0]
            guidance = guidance.clone()
            guidance[k] += (vector - guidance[k]) / counts[k]
    assert guidance is not None
    return guidance


def published_scores(head: PairHead, features: Tensor, guidance: Tensor) -> Tensor:
    """One score a value (1, A, h, w): every pair stacked into the batch, then decoded apart."""
    tiled = guidance[:, :, None, None].expand(-1, -1, *features.shape[2:])
    pairs = torch.cat([features.expand(len(guidance), -1, -1, -1), tiled], dim=1)
    return published_head(head, pairs).transpose(0, 1)


def published_late(
    model: GuidedLate, shots: Shots, query: Tensor, values: int = 2, *, short_circuit: bool = True
) -> Tensor:
    """cofeat-late(-lite): logits (1, A, H, W)."""
    assert isinstance(model.encoder, FCNVGG)
    guidance = published_guide(model.encoder, shots, values, short_circuit=short_circuit)
    return published_late_query(model, guidance, query)


def published_late_query(model: GuidedLate, guidance: Tensor, query: Tensor) -> Tensor:
    """The query's part of `published_late`."""
    assert isinstance(model.encoder, FCNVGG)
    return published_late_head(
        model, guidance, published_encoder(model.encoder, query), (query.shape[2], query.shape[3])
    )


def published_late_head(
    model: GuidedLate, guidance: Tensor, features: Tensor, size: tuple[int, int]
) -> Tensor:
    """What follows the encoder: head and decoder of one channel a value."""
    scores = published_scores(model.head, features, guidance)
    return published_decoder(scores.transpose(0, 1), size).transpose(0, 1)


def published_unshared(model: GuidedLate, shots: Shots, query: Tensor) -> Tensor:
    """cofeat-late-lite-unshared: one head that sees [q; object; background]."""
    assert isinstance(model.encoder, FCNVGG)
    features = published_encoder(model.encoder, query)
    total = torch.zeros(2, features.shape[1])
    for image, labels in shots:
        maps = published_encoder(model.encoder, image)
        total = total + (maps * published_mass(channels_of(labels, 2))).sum((2, 3))
    mean = total / len(shots)
    tiled = mean.flip(0).flatten()[None, :, None, None].expand(-1, -1, *features.shape[2:])
    scores = published_head(model.head, torch.cat([features, tiled], dim=1))
    return published_decoder(scores, (query.shape[2], query.shape[3]))


def published_early_input(image: Tensor, labels: Tensor) -> Tensor:
    widened = F.max_pool2d(channels_of(labels, 2), 11, stride=1, padding=5)
    return torch.cat([image, widened * 256 - 128], dim=1)


def published_cofeat_early(model: GuidedEarly, shots: Shots, query: Tensor) -> Tensor:
    """cofeat-early: the mean over the positions of all shots' maps, side by side."""
    assert isinstance(model.encoder, FCNVGG)
    maps = [
        published_encoder(model.support_encoder, published_early_input(*shot)) for shot in shots
    ]
    guidance = torch.cat([one.flatten(2) for one in maps], dim=2).mean(dim=2)
    features = published_encoder(model.encoder, query)
    tiled = guidance[:, :, None, None].expand(-1, -1, *features.shape[2:])
    scores = published_head(model.head, torch.cat([tiled, features], dim=1))
    return published_decoder(scores, (query.shape[2], query.shape[3]))


def published_interactive_late(
    model: InteractiveLate, query: Tensor, labels: Tensor, values: int = 2
) -> Tensor:
    """interactive-late: features times annotation, position by position."""
    assert isinstance(model.encoder, FCNVGG)
    features = published_encoder(model.encoder, query)
    weights = published_mass(channels_of(labels, values))
    pairs = torch.cat([features.expand(values, -1, -1, -1), features * weights], dim=1)
    scores = published_head(model.head, pairs)
    return published_decoder(scores, (query.shape[2], query.shape[3])).transpose(0, 1)


def published_interactive_early(model: InteractiveEarly, query: Tensor, labels: Tensor) -> Tensor:
    """interactive-early: the annotation beside the image."""
    assert isinstance(model.encoder, FCNVGG)
    features = published_encoder(model.encoder, published_early_input(query, labels))
    scores = F.conv2d(features, model.head.weight, model.head.bias)
    return published_decoder(scores, (query.shape[2], query.shape[3]))
