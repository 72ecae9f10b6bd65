from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import masked_average_pool
from fastfss.ops.masked_average_pool import masked_average_pool_reference
from tests.kernels.helpers import double, gradients, laid_out, random, weights
from tests.tolerances import assert_close


def exact(features: Tensor, masks: Tensor, *options: object) -> Tensor:
    features, masks = double(features, masks)
    return masked_average_pool_reference(features, masks, *options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["first", "last", "cut"])
@pytest.mark.parametrize("resize", ["mask", "features"])
def test_it_equals_the_reference(device, dtype, layout, resize):
    # 40 channels and 5 x 8 positions: loads of 16 bytes, except from the cut map.
    features = laid_out(random(2, 40, 5, 8), layout).to(dtype).to(device)
    masks = weights(2, 2, 9, 19).to(device)
    result = masked_average_pool(features, masks, resize=resize, backend="cuda")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(features, masks, resize, True, 1e-5))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((6, 4), (6, 4)),
        ((1, 3), (9, 1)),
        ((5, 7), (3, 4)),
        ((2, 18), (9, 33)),
        ((4, 4), (1, 1)),
        ((3, 5), (37, 23)),
        ((2, 2), (90, 70)),
    ],
    ids=[
        "same",
        "thin",
        "smaller mask",
        "larger mask",
        "one pixel",
        "much larger mask",
        "wide windows",
    ],
)
@pytest.mark.parametrize("resize", ["mask", "features"])
def test_any_sizes(device, grid, size, align_corners, resize):
    features, masks = random(1, 3, *grid).to(device), weights(1, 1, *size).to(device)
    options = {"resize": resize, "align_corners": align_corners}
    result = masked_average_pool(features, masks, **options, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, resize, align_corners, 1e-5))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_any_number_of_masks(device, count, layout):
    features = laid_out(random(1, 4, 2, 5), layout).to(device)
    masks = weights(1, count, 2, 5).to(device)
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("channels", [1, 8, 270])
def test_any_number_of_channels(device, channels, layout):
    features = laid_out(random(1, channels, 3, 57), layout).to(device)
    masks = weights(1, 1, 3, 57).to(device)
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_large_batch_is_not_split(device, count):
    # More positions than weights lie in shared memory at once.
    features = laid_out(random(264, 4, 35, 31), "last").to(device)
    masks = weights(264, count, 35, 31).to(device)
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


def test_a_large_batch_takes_several_channels_a_warp(device):
    features, masks = random(264, 30, 1, 8).to(device), weights(264, 1, 1, 8).to(device)
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize(
    "kind", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_masks_of_any_dtype(device, kind):
    features, masks = random(1, 4, 2, 3).to(device), (weights(1, 2, 4, 5) > 0).to(kind).to(device)
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


def test_masks_of_any_strides(device):
    features = random(2, 4, 2, 3).to(device)
    masks = weights(1, 5, 4, 3).to(device).transpose(2, 3).expand(2, -1, -1, -1)[:, ::2]
    result = masked_average_pool(features, masks, backend="cuda")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_empty_mask_gives_zero(device, eps, layout):
    features = laid_out(random(1, 4, 3, 5), layout).to(device)
    masks = torch.zeros(1, 2, 8, 9, device=device)
    masks[0, 1, 4, 4] = 1
    result = masked_average_pool(features, masks, resize="features", eps=eps, backend="cuda")
    assert result[0, 0].abs().max() == 0
    assert result[0, 1].abs().max() > 0


def test_no_images_give_no_prototypes(device):
    features, masks = torch.zeros(0, 4, 3, 3, device=device), torch.zeros(0, 1, 3, 3, device=device)
    assert masked_average_pool(features, masks, backend="cuda").shape == (0, 1, 4)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_repeats_to_the_last_bit(device, dtype, layout):
    features = laid_out(random(1, 32, 8, 16), layout).to(dtype).to(device)
    masks = weights(1, 2, 8, 16).to(device)
    first, second = (masked_average_pool(features, masks, backend="cuda") for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_go_through(device):
    tensors = [random(1, 6, 3, 4).to(device), weights(1, 2, 5, 7).to(device)]
    along = [random(1, 2, 6, seed=5)]
    ours, wanted = (
        gradients(lambda f, m, b=backend: masked_average_pool(f, m, backend=b), tensors, along)
        for backend in ("cuda", "reference")
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right.cpu().double())
