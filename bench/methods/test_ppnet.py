"""PPNet with ResNet-50 at 417 px against the published form in the same run.

The head behind the encoder, with the supports' prototypes made anew and kept; and end to end, where
the published forward encodes the supports and makes the prototypes again for every query and ours
has them in a Task.

The published form enlarges a map of 2048 channels to the image, 1.4 GB, twice a support; so there
are few rounds, and 4 GB of memory are needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.methods.measuring import episode, measure
from fastfss import PPNet, Task, create_encoder
from fastfss.methods.parts import episode_vectors
from tests.methods.published_ppnet import published_prototypes, published_scores

SIZE, GRID, CHANNELS = 417, 53, 2048

SHOTS = pytest.mark.parametrize("shots", [1, 5])


def indices(model: PPNet, masks: Tensor) -> Tensor:
    """The start indices (2, 5) that the model's own starts are, background first."""
    maps = torch.zeros(*masks.shape[:2], 1, GRID, GRID)
    regions = torch.stack([masks == 1, masks != 1], dim=2)
    counts = [one.counts for one in episode_vectors([maps], [regions], model.parts)]
    return (model.own_starts(2) * torch.stack(counts)).long()


def published_logits(supports: Tensor, features: Tensor, masks: Tensor, starts: Tensor) -> Tensor:
    """(1, 2, H, W) of supports (1, K, C, h, w), query features (1, C, h, w) and masks."""
    calls = iter([starts[1], starts[0]])
    prototypes, _ = published_prototypes(
        supports, (masks == 1).float(), (masks != 1).float(), calls
    )
    scores = published_scores(features[0], prototypes)[None]
    return F.interpolate(scores, size=(SIZE, SIZE), mode="bilinear", align_corners=True)


@SHOTS
def test_head(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = PPNet(create_encoder("ppnet_resnet50")).eval()
    generator = torch.Generator().manual_seed(0)
    supports = torch.randn(1, shots, CHANNELS, GRID, GRID, generator=generator)
    features = torch.randn(1, CHANNELS, GRID, GRID, generator=generator)
    _, masks, _ = episode(shots, SIZE)
    starts = indices(model, masks)
    regions = torch.stack([masks == 1, masks != 1], dim=2)
    # As the encoder of for_inference returns them.
    maps = supports[0].to(memory_format=torch.channels_last).unsqueeze(0)
    query = features.to(memory_format=torch.channels_last)

    def task() -> Task:
        vectors = model.pool(maps[0], regions[0]).unsqueeze(0)
        return Task("ppnet", {"vectors": vectors, "features": maps, "regions": regions})

    def logits(prototypes: Tensor) -> Tensor:
        return model.enlarge(model.scores(query, prototypes), (SIZE, SIZE))

    kept = task()
    forms = {
        "ours, support anew": lambda: logits(model.prototypes([task()])),
        "ours, support kept": lambda: logits(model.prototypes([kept])),
    }
    measure(
        benchmark,
        f"PPNet {shots}-shot head",
        lambda: published_logits(supports, features, masks, starts),
        forms,
        reads=[query],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@SHOTS
def test_query_with_cached_support(benchmark: Any, shots: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = PPNet(create_encoder("ppnet_resnet50")).eval()
    fast = model.for_inference(dtype=dtype)
    images, masks, query = episode(shots, SIZE)
    starts = indices(model, masks)
    typed, typed_images = query.to(dtype), images.to(dtype)
    with torch.inference_mode():
        task = fast.encode_support(typed_images, masks)

    def published() -> Tensor:
        maps = model.features(torch.cat([images[0], query]))
        return published_logits(maps[None, :-1], maps[-1:], masks, starts)

    forms = {
        "ours, support anew": lambda: (
            fast.segment(typed, fast.encode_support(typed_images, masks)).logits
        ),
        "ours, support kept": lambda: fast.segment(typed, task).logits,
    }
    measure(benchmark, f"PPNet {shots}-shot {dtype}", published, forms, dtype=dtype)
