"""PGNet with ResNet-50 at 321 px, end to end and head alone, against the published forward.

The published forward encodes the supports again for every query, layer4 included; ours has them in
a Task, and its attention reads the object's positions, 22 % of each support, and one row for all
others. Weights are random: what is computed does not depend on them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.methods.measuring import measure
from bench.methods.test_canet import episode
from fastfss import PGNet, create_encoder
from tests.methods.published_canet import published_embedding
from tests.methods.published_pgnet import published_pgnet, published_pgnet_head


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_query_with_cached_support(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = PGNet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    supports, masks, query = episode(shots)
    task = fast.encode_support(supports, masks)
    measure(
        benchmark,
        f"PGNet {shots}-shot",
        lambda: published_pgnet(model, supports, masks, query),
        lambda: fast.segment(query, task).logits,
    )


@pytest.mark.parametrize("shots", [1, 5])
@torch.no_grad()
def test_head(benchmark: Any, shots: int) -> None:
    torch.manual_seed(0)
    model = PGNet(create_encoder("dilated_resnet50")).eval()
    fast = model.for_inference()
    supports, masks, query = episode(shots)
    task = model.encode_support(supports, masks)
    features = published_embedding(model, query)
    shot_features = [published_embedding(model, support) for support in supports]
    own_features = features.contiguous(memory_format=torch.channels_last)
    measure(
        benchmark,
        f"PGNet's head, {shots}-shot",
        lambda: published_pgnet_head(model, features, shot_features, masks),
        lambda: fast.head(own_features, [task])[:, 0],
    )
