"""Encoded images: what is kept, and that both roads to a task are one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastfss import create_model, list_models
from fastfss.methods import Features, FewShotSegmenter
from fastfss.methods.features import normalised
from tests.methods.options import OPTIONS

# PFENet wants 8 n + 1 pixels, DCAMA a multiple of 32.
SIDES = {"dcama": 64}
every_method = pytest.mark.parametrize("method", list_models())


def build(method: str) -> FewShotSegmenter:
    torch.manual_seed(0)
    side = SIDES.get(method, 65)
    return create_model(method, size=side, **OPTIONS.get(method, {})).eval()


def images(method: str, seed: int, batch: int = 1) -> torch.Tensor:
    side = SIDES.get(method, 65)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def mask(batch: int = 1, height: int = 50, width: int = 40) -> torch.Tensor:
    masks = torch.zeros(batch, height, width, dtype=torch.uint8)
    masks[:, 10:40, 8:30] = 1
    masks[:, :3] = 255
    return masks


def features(height: int = 4, names: tuple[str, ...] = ("a", "b"), batch: int = 2) -> Features:
    return Features({name: torch.randn(batch, 3, height, 5) for name in names}, (8 * height, 40))


@every_method
@torch.no_grad()
def test_a_shot_encoded_before_gives_the_same_task_to_the_last_bit(method: str) -> None:
    # A copy, since AMP moves its background with every support that it sees, as published.
    model = build(method)
    other = copy.deepcopy(model)
    wanted = model.encode_support([images(method, 1)], [mask()])
    found = other.support_from([other.encode(images(method, 1))], [mask()])
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@every_method
def test_a_gradient_reaches_the_features(method: str) -> None:
    model = build(method)
    # A random object's size is of no matter to the gradient; no ReLU may have died by chance.
    with torch.no_grad():
        support, query = (model.encode(images(method, seed)) for seed in (1, 2))
    for encoded in (support, query):
        for one in encoded.maps.values():
            one.requires_grad_(True)
    prediction = model.segment_from(query, model.support_from([support], [mask()]))
    prediction.logits.square().sum().backward()
    for side, encoded in (("support", support), ("query", query)):
        reached = [one.grad is not None for one in encoded.maps.values()]
        assert any(reached) or not model.few_shot, side
        assert all(
            torch.isfinite(o.grad).all() for o in encoded.maps.values() if o.grad is not None
        )


@torch.no_grad()
def test_features_of_one_size_serve_tasks_of_another() -> None:
    model = build("ssp")
    task = model.support_from([model.encode(torch.randn(1, 3, 49, 81))], [mask(1, 49, 81)])
    logits = model.segment_from(model.encode(torch.randn(1, 3, 73, 33)), task).logits
    assert logits.shape == (1, 2, 73, 33)


def test_features_are_counted_moved_and_chosen() -> None:
    one = features()
    assert one.batch == 2
    assert one.nbytes == 2 * (2 * 3 * 4 * 5) * 4
    low = one.to(dtype=torch.bfloat16)
    assert (low.nbytes, low.size) == (one.nbytes // 2, one.size)
    assert one.to("meta").maps["a"].device.type == "meta"
    last = one.select([1])
    assert last.batch == 1
    assert torch.equal(last.maps["b"][0], one.maps["b"][1])


def test_batches_of_features_become_one() -> None:
    parts = [features(batch=1), features(batch=2)]
    joined = Features.cat(parts)
    assert (joined.batch, joined.size) == (3, (32, 40))
    assert torch.equal(joined.maps["a"], torch.cat([part.maps["a"] for part in parts]))
    assert torch.equal(Features.cat(parts[:1]).maps["a"], parts[0].maps["a"])


@pytest.mark.parametrize(
    "parts", [[], [features(4), features(5)], [features(names=("a",)), features(names=("c",))]]
)
def test_unlike_features_are_not_joined(parts: list[Features]) -> None:
    with pytest.raises(ValueError, match="features: expected maps of the same names"):
        Features.cat(parts)


def test_positions_of_zeros_are_zeros_when_normalised_in_half() -> None:
    """1e-12, which keeps a norm from being 0, is 0 in half: 0 / 0."""
    maps = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    maps[..., 0] = 0
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = normalised(maps.to(dtype))
        assert found.dtype == dtype
        assert not found[..., 0].any()
        wanted = F.normalize(maps.to(dtype).double(), dim=1)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=torch.finfo(dtype).eps)
