from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import prototype_match
from fastfss.ops.prototype_match import prototype_match_reference
from tests.kernels.helpers import double, gradients, laid_out, random
from tests.tolerances import assert_close


def exact(features: Tensor, prototypes: Tensor, scale: float = 10.0, eps: float = 1e-8) -> Tensor:
    return prototype_match_reference(*double(features, prototypes), scale, eps)


@pytest.mark.parametrize("layout", ["first", "last", "cut"])
def test_it_equals_the_reference(device, dtype, layout):
    features = laid_out(random(2, 40, 5, 8), layout).to(dtype).to(device)
    prototypes = random(2, 3, 40, seed=1).to(dtype).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 17])
def test_any_number_of_prototypes(device, count, layout):
    features = laid_out(random(1, 12, 3, 8), layout).to(device)
    prototypes = random(1, count, 12, seed=1).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("channels", [1, 127, 520, 1100, 4200])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_channels(device, channels, count, layout):
    features = laid_out(random(1, channels, 2, 7), layout).to(device)
    prototypes = random(1, count, channels, seed=1).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (16, 24)], ids=str)
def test_any_grid(device, dtype, grid, layout):
    features = laid_out(random(1, 16, *grid), layout).to(dtype).to(device)
    prototypes = random(1, 2, 16, seed=1).to(dtype).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize(("count", "channels"), [(2, 20), (8, 1100)], ids=["few", "restaged"])
def test_a_block_takes_several_rows_of_a_large_batch(device, count, channels):
    # 1100 channels of eight prototypes do not fit in shared memory at once.
    features = laid_out(random(33, channels, 5, 20), "last").to(device)
    prototypes = random(33, count, channels, seed=1).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize("layout", ["first", "last"])
def test_repeats_to_the_last_bit(device, dtype, layout):
    features = laid_out(random(2, 136, 8, 16), layout).to(dtype).to(device)
    prototypes = random(2, 2, 136, seed=1).to(dtype).to(device)
    first, second = (prototype_match(features, prototypes, backend="cuda") for _ in range(2))
    assert torch.equal(first, second)


def test_a_large_batch_fills_whole_warps_with_positions(device):
    features = random(264, 260, 1, 4).to(device)
    prototypes = random(264, 2, 260, seed=1).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="cuda")
    assert_close(result.cpu(), exact(features, prototypes))


def test_prototypes_of_any_strides(device):
    features = random(2, 12, 3, 5).to(device)
    shared = random(3, 12, seed=1).to(device)
    apart = random(2, 12, 3, seed=2).to(device).transpose(1, 2)
    result = prototype_match(features, shared, backend="cuda")
    assert_close(result.cpu(), exact(features, shared.expand(2, -1, -1), 1.0))
    result = prototype_match(features, apart, backend="cuda")
    assert_close(result.cpu(), exact(features, apart, 1.0))


@pytest.mark.parametrize("layout", ["first", "last"])
def test_zero_features_and_prototypes_score_zero(device, layout):
    features = laid_out(random(1, 8, 2, 3), layout).to(device)
    features[:, :, 0, 1] = 0
    prototypes = torch.stack([torch.zeros(8), torch.ones(8)]).to(device)
    result = prototype_match(features, prototypes, backend="cuda")
    assert result[:, 0].abs().max() == 0
    assert result[:, 1, 0, 1] == 0
    assert result.isfinite().all()


def test_groups_are_reduced(device):
    features, prototypes = random(1, 8, 3, 3).to(device), random(2, 4, 8, seed=1).to(device)
    result = prototype_match(features, prototypes, reduce="max", backend="cuda")
    wanted = exact(features, prototypes.flatten(0, 1)[None], 1.0).view(1, 2, 4, 3, 3).amax(dim=2)
    assert_close(result.cpu(), wanted)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_gradients_use_the_kernels_norms(device, layout):
    tensors = [
        laid_out(random(1, 140, 3, 4), layout).to(device),
        random(1, 2, 140, seed=1).to(device),
    ]
    along = [random(1, 2, 3, 4, seed=5)]
    ours, wanted = (
        gradients(lambda f, p, b=backend: prototype_match(f, p, backend=b), tensors, along)
        for backend in ("cuda", "reference")
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right.cpu().double())


def test_a_prototype_for_every_position_is_left_to_others(device):
    features, prototypes = random(1, 8, 3, 3).to(device), random(1, 1, 8, 3, 3).to(device)
    with pytest.raises(NotImplementedError, match="prototype for every position"):
        prototype_match(features, prototypes, backend="cuda")
