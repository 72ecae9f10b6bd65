from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss import CANet
from tests.methods.published_canet import (
    published_canet,
    published_canet_head,
    published_embedding,
)
from tests.methods.test_embedding import episode
from tests.methods.test_embedding import model as any_model
from tests.tolerances import assert_close


def model(**options: int | float) -> CANet:
    segmenter = any_model(CANet, **options)
    assert isinstance(segmenter, CANet)
    return segmenter


@pytest.mark.parametrize(
    ("shots", "refine_time", "size"),
    [(1, 1, (65, 81)), (3, 3, (97, 50)), (2, 2, (9, 20))],
    ids=["one", "several", "smaller than the dilation"],
)
@torch.no_grad()
def test_the_logits_equal_the_published_forward(
    shots: int, refine_time: int, size: tuple[int, int]
) -> None:
    segmenter = model(refine_time=refine_time)
    images, masks, query = episode(batch=2, shots=shots, size=size)
    masks[..., : size[0] // 2, : size[1] // 2] = 1
    expected = published_canet(segmenter, list(images.unbind(1)), list(masks.unbind(1)), query)
    task = segmenter.encode_support(images, masks)
    assert_close(segmenter.segment(query, task).logits, expected)
    fast = segmenter.for_inference()
    assert_close(fast.segment(query, task).logits, expected)


def test_the_gradients_equal_those_of_the_published_head() -> None:
    # float64: a ReLU flipped by rounding would change a gradient at random.
    segmenter = model(dropout=0.0, batch_statistics=False).train().double()
    images, masks, query = (part.double() for part in episode(shots=2, size=(49, 57)))
    target = masks[:, 0]
    parameters = [p for p in segmenter.parameters() if p.requires_grad]
    ours = segmenter.loss(segmenter(images, masks, query), target)
    found = torch.autograd.grad(ours, parameters)
    shots = [published_embedding(segmenter, image) for image in images.unbind(1)]
    embedded = published_embedding(segmenter, query)
    logits = published_canet_head(segmenter, embedded, shots, list(masks.unbind(1)))
    wanted = torch.autograd.grad(segmenter.loss(logits, target), parameters)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, dtype=torch.float32)


@torch.no_grad()
def test_each_refinement_reads_the_logits_of_the_one_before() -> None:
    segmenter = model(refine_time=3)
    images, masks, query = episode()
    features = segmenter.embed(query)
    task = segmenter.encode_support(images, masks)
    fused = segmenter.fused(features, task.tensors["prototype"])
    steps = segmenter.refined(fused)
    segmenter.refine_time = 2
    for step, shorter in zip(steps, segmenter.refined(fused), strict=False):
        assert torch.equal(step, shorter)
    spread = steps[0].std()
    assert (steps[1] - steps[0]).abs().max() > 0.01 * spread
    assert (steps[2] - steps[1]).abs().max() > 0.01 * spread


@torch.no_grad()
def test_several_shots_give_the_mean_of_their_logits() -> None:
    segmenter = model()
    images, masks, query = episode(shots=3)
    task = segmenter.encode_support(images, masks)
    alone = [segmenter.segment(query, task.select([shot])).logits for shot in range(3)]
    assert_close(segmenter.segment(query, task).logits, torch.stack(alone).mean(0))


@torch.no_grad()
def test_an_empty_mask_gives_a_zero_prototype() -> None:
    segmenter = model()
    images, masks, _ = episode()
    task = segmenter.encode_support(images, torch.zeros_like(masks))
    assert task.tensors["prototype"].abs().max() == 0


@torch.no_grad()
def test_what_does_not_change_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = model()
    images, masks, query = episode(shots=3)
    task = segmenter.encode_support(images, masks)
    features = segmenter.embed(query)
    real, calls = F.conv2d, []

    def watched(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
        calls.append((x.shape[0], *weight.shape[1:]))
        return real(x, weight, *rest, **options)

    monkeypatch.setattr(F, "conv2d", watched)
    segmenter.head(features, [task, task])
    wide = [batch for batch, *kernel in calls if kernel == [256, 3, 3]]
    # The query's half of fuse, for its one query. Then for all six shots of the ways: the fixed
    # half of fuse_history, and three times its second convolution, two residual blocks of two and
    # the pyramid's three.
    assert wide == [1] + [6] * (1 + 3 * (1 + 4 + 3))
    assert [batch for batch, *kernel in calls if kernel == [2, 3, 3]] == [6, 6]


def test_refine_time_must_be_positive() -> None:
    with pytest.raises(ValueError, match="refine_time: expected a positive number, got 0"):
        model(refine_time=0)
