"""CANet with ResNet-50 at 321 px, end to end and head alone, against the published forward.

The published forward encodes the supports again for every query, layer4 included; ours has them in
a Task. Weights are random: what is computed does not depend on them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods.measuring import measure
from fastfss import CANet, create_encoder
from tests.methods.published_canet import (
    published_canet,
    published_canet_head,
    published_embedding,
)

SIZE = 321


def episode(shots: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """K supports (1, 3, H, W), their masks (1, H, W), 22 % object, and a query."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shots + 1, 1, 3, SIZE, SIZE, generator=generator)
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 60:210, 80:230] = 1
    return list(images[:-1]), [mask] * shots, images[-1]


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_query_with_cached_support(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = CANet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    supports, masks, query = episode(shots)
    task = fast.encode_support(supports, masks)
    measure(
        benchmark,
        f"CANet {shots}-shot",
        lambda: published_canet(model, supports, masks, query),
        lambda: fast.segment(query, task).logits,
    )


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_head(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = CANet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    supports, masks, query = episode(shots)
    task = model.encode_support(supports, masks)
    features = published_embedding(model, query)
    shot_features = [published_embedding(model, support) for support in supports]
    own_features = features.contiguous(memory_format=torch.channels_last)
    measure(
        benchmark,
        f"CANet's head, {shots}-shot",
        lambda: published_canet_head(model, features, shot_features, masks),
        lambda: fast.head(own_features, [task])[:, 0],
    )
