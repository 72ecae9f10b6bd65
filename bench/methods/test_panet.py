"""PANet with its VGG-16 at 417 px against the published form in the same run.

The head alone, supports included (pooling, scores, enlarged logits), and end to end. The published
forward encodes and pools the supports again for every query; ours has them in a Task.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.methods.measuring import episode, measure
from fastfss import PANet, create_encoder
from fastfss.methods.panet import enlarge
from tests.methods.published_panet import published_prototypes, published_scores

SIZE, GRID, CHANNELS = 417, 53, 512

SHOTS = pytest.mark.parametrize("shots", [1, 5])


def published_logits(supports: Tensor, features: Tensor, masks: Tensor) -> Tensor:
    """(1, 2, H, W) of supports (1, K, C, h, w), query features (1, C, h, w) and masks."""
    prototypes = published_prototypes(supports, (masks == 1).float(), (masks != 1).float())
    scores = published_scores(features, prototypes)
    return F.interpolate(scores, size=masks.shape[-2:], mode="bilinear", align_corners=False)


@SHOTS
def test_head(benchmark: Any, shots: int) -> None:
    generator = torch.Generator().manual_seed(0)
    model = PANet(create_encoder("panet_vgg16"))
    supports = torch.randn(1, shots, CHANNELS, GRID, GRID, generator=generator)
    features = torch.randn(1, CHANNELS, GRID, GRID, generator=generator)
    _, masks, _ = episode(shots, SIZE)
    # As the encoder of for_inference returns them.
    own_supports = list(supports[0].to(memory_format=torch.channels_last).split(1))
    own_features = features.to(memory_format=torch.channels_last)

    def ours() -> Tensor:
        prototypes = model.shot_prototypes(own_supports, list(masks.unbind(1))).mean(dim=1)
        scores = model.scores(own_features, prototypes[:, :1], prototypes[:, 1])
        return enlarge(scores, (SIZE, SIZE))

    def published() -> Tensor:
        return published_logits(supports, features, masks)

    reads = [*own_supports, own_features]
    measure(benchmark, f"PANet {shots}-shot head", published, ours, seconds=10, reads=reads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@SHOTS
def test_query_with_cached_support(benchmark: Any, shots: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = PANet(create_encoder("panet_vgg16")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)
    with torch.inference_mode():
        task = fast.encode_support(images.to(dtype), masks)
    typed = query.to(dtype)

    def ours() -> Tensor:
        return fast.segment(typed, task).logits

    def published() -> Tensor:
        maps = model.features(torch.cat([images[0], query]))
        return published_logits(maps[None, :-1], maps[-1:], masks)

    measure(benchmark, f"PANet {shots}-shot {dtype}", published, ours, dtype=dtype)
