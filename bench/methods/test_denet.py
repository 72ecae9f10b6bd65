"""DENet with ResNet-50 at 321 px, end to end and head alone, against the published forward.

The published forward encodes the supports again for every query, layer4 included; ours has them in
a Task. Weights are random: what is computed does not depend on them. "Head" is everything behind
the encoder, of a query alone and of its support in the published form.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods.measuring import measure
from fastfss import DENet, Task, create_encoder
from fastfss.methods.prototypes import upsample
from tests.methods.published_denet import (
    published_classifier,
    published_forward,
    published_head,
    published_prototype,
)

SIZE = 321
LABEL = 3


def episode(shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (1, 1, K, 3, H, W), their masks, 22 % object, a query, and its class id."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 1, shots, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(1, 1, shots, SIZE, SIZE)
    masks[..., 60:210, 80:230] = 1
    query = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    return images, masks, query, torch.tensor([[LABEL]])


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_query_with_cached_support(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = DENet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    images, masks, query, labels = episode(shots)
    task = fast.encode_support(images[:, 0], masks[:, 0], labels[:, 0])
    measure(
        benchmark,
        f"DENet {shots}-shot",
        lambda: upsample(published_forward(model, images, masks, query, labels)[1], (SIZE, SIZE)),
        lambda: fast.segment(query, task).logits,
    )


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_head(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = DENet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    images, masks, query, labels = episode(shots)
    task = model.encode_support(images[:, 0], masks[:, 0], labels[:, 0])
    supports, maps = model.features(images.flatten(0, 2)), model.features(query)
    own_maps = maps.contiguous(memory_format=torch.channels_last)

    def published() -> Tensor:
        rows = published_prototype(
            model.estimator, published_head(model, supports), masks.flatten(0, 2)
        )
        prototypes = rows.view(1, 1, shots, -1)
        features = published_head(model, maps)
        return published_classifier(model.estimator, features, prototypes, labels)[1]

    def ours() -> Tensor:
        return fast.head(fast.embed_maps(own_maps), [task]).binary()

    measure(benchmark, f"DENet's head, {shots}-shot", published, ours)


@torch.no_grad()
def test_classifiers_of_a_batch(benchmark: Any) -> None:
    """The extended classifiers alone, 8 items and 81 classes, as for COCO."""
    torch.manual_seed(0)
    model = DENet(create_encoder("dilated_resnet50"), classes=81).eval()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 256, 41, 41, generator=generator)
    prototypes = torch.randn(8, 1, 1, 256, generator=generator)
    labels = torch.arange(1, 9).unsqueeze(1)
    task = Task("denet", {"prototype": prototypes[:, 0], "label": labels})
    measure(
        benchmark,
        "DENet's classifiers, batch of 8, 81 classes",
        lambda: published_classifier(model.estimator, features, prototypes, labels)[1],
        lambda: model.head(features, [task]).binary(),
        reads=[features],
    )
