"""PFENet's prior, and what becomes of it in low precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastfss import Task
from fastfss.methods import pfenet
from tests.methods.published_pfenet import scaled_prior
from tests.methods.test_pfenet import episode, model
from tests.tolerances import assert_close


def features(batch: int, channels: int, side: int, seed: int, scale: float = 1.0) -> Tensor:
    """As after a ReLU: about half of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, channels, side, side, generator=generator).relu()


def task_of(high: Tensor, objects: Tensor) -> Task:
    """Of support features (B, K, C, h, w), not yet masked, and masks (B, K, h, w)."""
    vector = torch.zeros(*high.shape[:2], 256)
    tensors = {"vector": vector, "high": high * objects.unsqueeze(2), "object": objects}
    return Task("pfenet", tensors)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_prior_equals_the_published_one(batch: int, shots: int) -> None:
    query = features(batch, 48, 9, seed=0)
    support = torch.stack([features(batch, 48, 7, seed=1 + k) for k in range(shots)], dim=1)
    objects = torch.rand(batch, shots, 7, 7, generator=torch.Generator().manual_seed(9)) - 0.6
    objects = objects.clamp_min(0)  # soft, and most positions outside
    query[:, :, 2, 3] = 0
    support[:, 0, :, 4, 4] = 0
    objects[:, 0, 4, 4] = 1
    ours = model().priors(query, task_of(support, objects))
    for shot in range(shots):
        wanted = scaled_prior(query, support[:, shot], objects[:, shot])
        assert_close(ours[:, shot], wanted)
    assert ours[:, :, 2, 3].abs().max() == 0
    assert ours.isfinite().all()


@pytest.mark.parametrize("scale", [1e-2, 1e-1, 1.0, 1e2])
def test_the_epsilon_of_the_published_cosine_counts_only_for_tiny_features(scale: float) -> None:
    """It lowers a cosine by 1e-7 / (|s| |q|) of itself; here the norms are about 5 scale."""
    query, support = features(1, 48, 9, 0, scale), features(1, 48, 9, 1, scale)
    objects = torch.ones(1, 1, 9, 9).triu()
    ours = model().priors(query.double(), task_of(support.double().unsqueeze(1), objects.double()))
    wanted = scaled_prior(query.double(), support.double(), objects[:, 0].double())
    norms = support.flatten(2).norm(dim=1).min() * query.flatten(2).norm(dim=1).min()
    # The range of the cosines, by which the rescaling multiplies the error, is above 0.2 here.
    assert (ours[:, 0] - wanted).abs().max() <= 10 * 1e-7 / norms


@torch.no_grad()
def test_an_object_of_no_position_gives_a_zero_prior_and_finite_logits() -> None:
    segmenter = model()
    images, masks, query = episode(shots=2)
    masks[:, 1] = 0
    masks[:, 1, 1, 1] = 1  # between the positions that the reduced mask samples
    task = segmenter.encode_support(images, masks)
    high = segmenter.encoder(query, ("layer4",))["layer4"]
    priors = segmenter.priors(high, task)
    assert priors[:, 1].abs().max() == 0
    assert priors[:, 0].max() == pytest.approx(1, abs=1e-5)
    assert task.tensors["vector"][:, 1].abs().max() == 0
    assert segmenter.segment(query, task).logits.isfinite().all()


def test_the_prior_of_bfloat16_maps_is_as_exact_as_their_values_allow() -> None:
    """A result rounded to bfloat16 would be off by 1e-1: the cosines lie within a few percent."""
    common = features(1, 256, 1, seed=5)
    query = (common + 0.3 * features(1, 256, 30, seed=0)).bfloat16()
    support = (common + 0.3 * features(1, 256, 30, seed=1)).bfloat16()
    objects = torch.ones(1, 1, 30, 30).triu(10)
    segmenter = model()
    ours = segmenter.priors(query, task_of(support.unsqueeze(1), objects.bfloat16()))
    assert ours.dtype == torch.float32
    exact = scaled_prior(query.double(), support.double(), objects[:, 0].double())
    cosine = nn.functional.cosine_similarity(query.float(), common, dim=1)
    assert cosine.max() - cosine.min() < 0.1
    assert (ours[0, 0] - exact[0]).abs().max() < 1e-4


def test_five_shots_are_matched_without_a_copy_of_the_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def match(query: Tensor, key: Tensor, **options: object) -> Tensor:
        seen.append((query, key))
        return torch.rand(query.shape[0], *query.shape[2:])

    monkeypatch.setattr(pfenet, "dense_match", match)
    query, support = features(1, 8, 6, seed=0), features(5, 8, 6, seed=1).unsqueeze(0)
    query = query.to(memory_format=torch.channels_last)
    model().priors(query, task_of(support, torch.ones(1, 5, 6, 6)))
    assert len(seen) == 1
    matched, _ = seen[0]
    assert matched.shape == (5, 8, 36)
    assert matched.untyped_storage().data_ptr() == query.untyped_storage().data_ptr()
