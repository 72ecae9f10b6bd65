"""DENet's evaluation forward as published: the yardstick for speed, and an oracle.

Supports go through the network for every query, layer4 is computed though nobody reads it, the
gated map is made at full size, and the classifier is extended item by item with a copy of the
logits of all other classes a way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss import DENet
from fastfss.methods.weight_estimator import WeightEstimator
from tests.methods.published_aspp import published_aspp


def published_prototype(estimator: WeightEstimator, features: Tensor, masks: Tensor) -> Tensor:
    """Rows (M, 256) of supports (M, 256, h, w) with masks (M, H, W) of {0, 1}."""
    small = F.interpolate(masks.unsqueeze(1).float(), features.shape[2:], mode="nearest")
    gate = estimator.gam["gate"](F.adaptive_avg_pool2d(small * features, 1))
    gated = gate * features
    sums = (small * gated).sum((2, 3), keepdim=True)
    pooled = sums / (small.sum((2, 3), keepdim=True) + 0.001)
    row: Tensor = estimator.map["linear"](pooled).flatten(1)
    return row


def published_classifier(
    estimator: WeightEstimator,
    features: Tensor,  # (N, 256, h, w)
    prototypes: Tensor,  # (N, W, K, 256)
    labels: Tensor,  # (N, W)
) -> tuple[Tensor, Tensor]:  # (N, C, h, w), (N * W, 2, h, w)
    """Logits of all classes, and the binary ones."""
    means = prototypes.mean(dim=2)
    full, binary = [], []
    for item in range(len(features)):
        weight = estimator.weight.clone()
        for way, label in enumerate(labels[item].tolist()):
            weight[label] = means[item, way]
        logits = F.conv2d(features[item : item + 1], weight[:, :, None, None])
        full.append(logits)
        for label in labels[item].tolist():
            others = [row for row in range(len(weight)) if row != label]
            rest = logits[:, others].max(dim=1, keepdim=True).values
            binary.append(torch.cat([rest, logits[:, label : label + 1]], dim=1))
    return torch.cat(full), torch.cat(binary)


def published_head(model: DENet, maps: Tensor) -> Tensor:
    """(M, 256, h, w) of the encoder's maps (M, C, h, w)."""
    head = model.deeplab_head
    x = published_aspp(head.aspp, model.embedding(maps))
    embedded: Tensor = F.relu(head.bn(head.conv1(x)))
    return embedded


def published_embedding(model: DENet, images: Tensor) -> Tensor:
    """(M, 256, h, w) of images (M, 3, H, W); the whole encoder runs."""
    return published_head(model, model.encoder(images)[model.layers[0]])


def published_forward(
    model: DENet,
    images: Tensor,  # (N, W, K, 3, H, W)
    masks: Tensor,  # (N, W, K, H, W)
    query: Tensor,  # (N, 3, H, W)
    labels: Tensor,  # (N, W)
) -> tuple[Tensor, Tensor]:
    """Logits of all classes, and the binary ones, at the head's size."""
    supports = published_embedding(model, images.flatten(0, 2))
    rows = published_prototype(model.estimator, supports, masks.flatten(0, 2))
    features = published_embedding(model, query)
    prototypes = rows.unflatten(0, images.shape[:3])
    return published_classifier(model.estimator, features, prototypes, labels)
