"""AMP with VGG-16 at 321 px, end to end and head alone, against the published forward.

The published forward encodes the supports again for every query; ours has them in a Task. Weights
are random: what is computed does not depend on them. Row 0 of the classifiers, which the published
forward overwrites, is put back before each of its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.methods.measuring import measure
from fastfss import AMP, create_encoder
from tests.methods.published_amp import published_forward, published_levels

SIZE = 321


def episode(shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (1, K, 3, H, W), their masks, 22 % object, a query, and its class id."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, shots, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(1, shots, SIZE, SIZE)
    masks[..., 60:210, 80:230] = 1
    return images, masks, torch.randn(1, 3, SIZE, SIZE, generator=generator), torch.tensor([3])


def with_row_put_back(model: AMP, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The function, after row 0 of the classifiers has been put back."""
    rows = [one.weight.data[0].clone() for one in model.classifiers]

    def call() -> Tensor:
        for classifier, row in zip(model.classifiers, rows, strict=True):
            classifier.weight.data[0] = row
        return function()

    return call


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_query_with_cached_support(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = AMP(create_encoder("amp_vgg16")).eval()
    fast = model.for_inference()
    images, masks, query, labels = episode(shots)
    task = fast.encode_support(images, masks, labels)
    measure(
        benchmark,
        f"AMP {shots}-shot",
        with_row_put_back(model, lambda: published_forward(model, images, masks, query, labels)),
        lambda: fast.classify(query, task).full,
    )


@pytest.mark.parametrize(("items", "shots"), [(1, 5), (8, 1)])
@torch.no_grad()
def test_head(benchmark: Any, items: int, shots: int) -> None:
    """Everything behind the encoder, 81 classes, as for COCO."""
    torch.manual_seed(0)
    model = AMP(create_encoder("amp_vgg16"), classes=81).eval()
    images, masks, query, _ = episode(items * shots)
    supports, masks = model.levels(images[0]), masks[0].view(items, shots, SIZE, SIZE)
    queries = [one.repeat(items, 1, 1, 1) for one in model.levels(query)]
    own_queries = [one.contiguous(memory_format=torch.channels_last) for one in queries]
    labels = torch.arange(1, items + 1)
    published = with_row_put_back(
        model, lambda: published_levels(model, supports, masks, queries, labels)
    )
    task = model.encode_support(images[0].view(items, shots, 3, SIZE, SIZE), masks, labels)
    measure(
        benchmark,
        f"AMP's head, {items} x {shots} shots",
        published,
        lambda: model.head(own_queries, [task]).full,
    )
