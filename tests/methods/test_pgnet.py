from __future__ import annotations

import pytest
import torch

from fastfss import PGNet
from tests.methods.published_canet import published_embedding
from tests.methods.published_pgnet import published_pgnet, published_pgnet_head
from tests.methods.test_embedding import episode
from tests.methods.test_embedding import model as any_model
from tests.tolerances import assert_close


def model(**options: bool | float) -> PGNet:
    segmenter = any_model(PGNet, **options)
    assert isinstance(segmenter, PGNet)
    return segmenter


@pytest.mark.parametrize(
    ("shots", "size"),
    [(1, (65, 81)), (3, (97, 50)), (2, (33, 33))],
    ids=["one", "several", "one position at a quarter"],
)
@torch.no_grad()
def test_the_logits_equal_the_published_forward(shots: int, size: tuple[int, int]) -> None:
    segmenter = model()
    images, masks, query = episode(batch=2, shots=shots, size=size)
    expected = published_pgnet(segmenter, list(images.unbind(1)), list(masks.unbind(1)), query)
    task = segmenter.encode_support(images, masks)
    assert_close(segmenter.segment(query, task).logits, expected)
    fast = segmenter.for_inference()
    assert_close(fast.segment(query, task).logits, expected)


@pytest.mark.parametrize("shots", [1, 2])
def test_the_gradients_equal_those_of_the_published_head(shots: int) -> None:
    """The fourth unit's too, whose softmax is overwritten before its gradient is taken."""
    # float64: a ReLU flipped by rounding would change a gradient at random.
    segmenter = model(dropout=0.0, batch_statistics=False).train().double()
    images, masks, query = (part.double() for part in episode(batch=2, shots=shots, size=(49, 57)))
    target = masks[:, 0]
    names, parameters = zip(
        *((n, p) for n, p in segmenter.named_parameters() if p.requires_grad), strict=True
    )
    ours = segmenter.loss(segmenter(images, masks, query), target)
    found = torch.autograd.grad(ours, parameters)
    embedded = [published_embedding(segmenter, image) for image in images.unbind(1)]
    features = published_embedding(segmenter, query)
    logits = published_pgnet_head(segmenter, features, embedded, list(masks.unbind(1)))
    wanted = torch.autograd.grad(segmenter.loss(logits, target), parameters)
    largest = max(float(one.abs().max()) for one in wanted)
    for name, one, other in zip(names, found, wanted, strict=True):
        # What a softmax cancels; the fourth unit's weights sum to one with one shot alone.
        if name.endswith("theta.bias") and (shots == 1 or "gau_4" not in name):
            assert max(float(one.abs().max()), float(other.abs().max())) < 1e-12 * largest
        else:
            assert_close(one, other, dtype=torch.float32)
    moved = dict(zip(names, found, strict=True))
    assert moved["gau_4.theta.weight"].abs().max() > 0
    assert moved["gau_4.phi.weight"].abs().max() > 0


@torch.no_grad()
def test_attention_is_read_untransposed_unless_asked() -> None:
    images, masks, query = episode()
    published, mended = model(), model(transpose_attention=True)
    task = published.encode_support(images, masks)
    features = published.embed(query)
    pyramid = [features[:, :, ::4, ::4], features[:, :, ::2, ::2], features, features]
    found = published.attended(pyramid, task)
    wanted = mended.attended(pyramid, task)
    for one, other, maps in zip(found, wanted, pyramid, strict=True):
        assert one.shape == other.shape == maps.shape
        rows = other.flatten(2).transpose(1, 2)
        assert torch.equal(one.flatten(), rows.flatten())
        assert not torch.equal(one, other)
    values, weight = task.tensors["value"], task.tensors["weight"]
    logits = published.gau_3.queries(features) @ published.gau_3.keys(task.tensors["key"][0]).mT
    attention = (logits.exp() * weight) / (logits.exp() * weight).sum(2, keepdim=True)
    assert_close(wanted[2].flatten(2).mT, attention @ values[:, 0])


@torch.no_grad()
def test_the_fourth_unit_sums_over_shots_unless_asked() -> None:
    images, masks, query = episode(shots=3)
    published, mended = model(), model(uniform_mean=True)
    task = published.encode_support(images, masks)
    maps = [published.embed(query)] * 4
    total, mean = (one.attended(maps, task)[3] for one in (published, mended))
    assert_close(total, 3 * mean)
    alone = task.select([0])
    assert torch.equal(*(one.attended(maps, alone)[3] for one in (published, mended)))


@torch.no_grad()
def test_positions_outside_of_the_object_are_one_row_with_their_number() -> None:
    segmenter = model()
    images, masks, _ = episode(shots=2)
    task = segmenter.encode_support(images, masks)
    key, value, weight = (task.tensors[name] for name in ("key", "value", "weight"))
    assert key.shape == value.shape == (1, 2, 9 * 11 + 1, 256)
    assert weight.shape == (1, 2, 9 * 11 + 1)
    assert torch.equal(weight.sum(2), torch.full((1, 2), 99.0))
    assert set(weight[..., :-1].unique().tolist()) == {0.0, 1.0}
    outside = key[weight == 0]
    assert torch.equal(outside, torch.full_like(outside, 0.0005))
    assert torch.equal(key[:, :, -1], torch.full_like(key[:, :, -1], 0.0005))


@torch.no_grad()
def test_shots_share_one_softmax() -> None:
    """Not the mean over the shots: a shot that answers louder takes a larger part."""
    segmenter = model()
    images, masks, query = episode(shots=2)
    task = segmenter.encode_support(images, masks)
    features = segmenter.embed(query)
    together = segmenter.attended([features] * 4, task)[2]
    alone = [segmenter.attended([features] * 4, task.select([shot]))[2] for shot in range(2)]
    assert not torch.allclose(together, torch.stack(alone).mean(0), rtol=1e-3)
    expected = segmenter.attended([features] * 4, task.select([0, 0]))[2]
    assert_close(expected, alone[0])


@torch.no_grad()
def test_an_image_of_a_few_pixels_is_segmented() -> None:
    segmenter = model()
    images, masks, query = episode(size=(9, 20))
    masks[..., :4, :9] = 1
    task = segmenter.encode_support(images, masks)
    assert segmenter.segment(query, task).logits.shape == (1, 2, 9, 20)


@torch.no_grad()
def test_the_fourth_units_softmax_is_not_computed_in_evaluation() -> None:
    segmenter = model()
    images, masks, query = episode()
    task = segmenter.encode_support(images, masks)
    calls = []
    for part in (segmenter.gau_4.phi, segmenter.gau_4.theta):
        part.register_forward_hook(lambda *_: calls.append(1))
    segmenter.segment(query, task)
    assert not calls
