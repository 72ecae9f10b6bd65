from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import masked_average_pool
from fastfss.ops.masked_average_pool import masked_average_pool_reference
from tests.kernels.helpers import (
    assert_like_plain,
    captured,
    double,
    gradients,
    laid_out,
    random,
    weights,
)
from tests.published import ssp_masked_average_pool
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact(features: Tensor, masks: Tensor, *options: object) -> Tensor:
    features, masks = double(features, masks)
    return masked_average_pool_reference(features, masks, *options)  # type: ignore[arg-type]


@pytest.mark.parametrize(  # no tl.dot here: bfloat16 in the interpreter too
    ("dtype", "layout", "resize"),
    [
        (torch.float32, "first", "mask"),
        (torch.float32, "last", "features"),
        (torch.float32, "cut", "mask"),
        (torch.float16, "last", "mask"),
        (torch.float16, "cut", "features"),
        (torch.bfloat16, "first", "features"),
        (torch.bfloat16, "last", "mask"),
    ],
    ids=str,
)
def test_it_equals_the_reference(device, dtype, layout, resize):
    features = laid_out(random(2, 21, 5, 7), layout).to(dtype).to(device)
    masks = weights(2, 1, 9, 19).to(device)
    result = masked_average_pool(features, masks, resize=resize, backend="triton")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(features, masks, resize, True, 1e-5))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("grid", "size"),
    [((6, 4), (6, 4)), ((1, 3), (9, 1)), ((5, 7), (3, 4)), ((2, 18), (9, 33))],
    ids=["same", "thin", "smaller mask", "larger mask"],
)
@pytest.mark.parametrize("resize", ["mask", "features"])
def test_any_sizes(device, grid, size, align_corners, resize):
    features, masks = random(1, 3, *grid).to(device), weights(1, 1, *size).to(device)
    options = {"resize": resize, "align_corners": align_corners}
    result = masked_average_pool(features, masks, **options, backend="triton")
    assert_close(result.cpu(), exact(features, masks, resize, align_corners, 1e-5))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_any_number_of_masks(device, count):
    features, masks = random(1, 4, 2, 5).to(device), weights(1, count, 2, 5).to(device)
    result = masked_average_pool(features, masks, backend="triton")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("channels", [1, 8, 270])
def test_positions_are_split_where_channels_are_few(device, channels):
    features, masks = random(1, channels, 3, 17).to(device), weights(1, 1, 3, 17).to(device)
    result = masked_average_pool(features, masks, backend="triton")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float16, torch.float64], ids=str)
def test_masks_of_any_dtype(device, kind):
    features, masks = random(1, 4, 2, 3).to(device), (weights(1, 2, 4, 5) > 0).to(kind).to(device)
    result = masked_average_pool(features, masks, backend="triton")
    assert_close(result.cpu(), exact(features, masks, "mask", True, 1e-5))


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_empty_mask_gives_zero(device, eps):
    features, masks = random(1, 4, 3, 5).to(device), torch.zeros(1, 2, 8, 9, device=device)
    masks[0, 1, 4, 4] = 1
    result = masked_average_pool(features, masks, resize="features", eps=eps, backend="triton")
    assert result[0, 0].abs().max() == 0
    assert result[0, 1].abs().max() > 0


@pytest.mark.parametrize(("resize", "layout"), [("mask", "first"), ("features", "last")])
def test_gradients_equal_the_references(device, layout, resize):
    tensors = [laid_out(random(2, 18, 3, 4), layout).to(device), weights(2, 2, 5, 7).to(device)]
    along = [random(2, 2, 18, seed=5)]
    ours = gradients(
        lambda f, m: masked_average_pool(f, m, resize=resize, backend="triton"), tensors, along
    )
    wanted = gradients(
        lambda f, m: masked_average_pool(f, m, resize=resize, backend="reference"),
        double(*tensors),
        along,
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right)
    assert ours[0].stride() == tensors[0].stride()


def test_gradient_of_the_masks_alone(device):
    features, masks = random(1, 6, 3, 4).to(device), weights(1, 2, 5, 6).to(device)
    along = [random(1, 2, 6, seed=5)]
    (ours,) = gradients(lambda m: masked_average_pool(features, m), [masks], along)
    (wanted,) = gradients(lambda m: masked_average_pool(*double(features), m), double(masks), along)
    assert_close(ours.cpu(), wanted)


def test_opcheck(device):
    features = random(1, 6, 4, 5).to(device).requires_grad_()
    masks = weights(1, 2, 9, 9).to(device).requires_grad_()
    args = (features, masks, "mask", True, 1e-5)
    torch.library.opcheck(torch.ops.fastfss.masked_average_pool.default, args)


# ---- On a GPU, at real sizes

SIZES = [(1, 1024, "mask"), (16, 1024, "mask"), (4, 512, "features")]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "channels", "resize"), SIZES)
def test_real_sizes(device, batch, channels, resize, dtype, layout):
    features = laid_out(random(batch, channels, 60, 60).cuda().to(dtype), layout)
    masks = F.interpolate(weights(batch, 2, 60, 60), (473, 473)).cuda()
    result = masked_average_pool(features, masks, resize=resize)
    wanted = masked_average_pool_reference(features.double(), masks.double(), resize, True, 1e-5)
    assert_close(result, wanted)
    plain = masked_average_pool_reference(features, masks, resize, True, 1e-5)
    assert_like_plain(result, plain, wanted)
    again = masked_average_pool(features, masks, resize=resize)
    assert torch.equal(result, again), "sums in another order"
    assert torch.equal(
        captured(lambda: masked_average_pool(features, masks, resize=resize))(), result
    )


@pytest.mark.gpu
def test_it_equals_the_published_form_when_compiled(device):
    features, masks = random(2, 64, 30, 30).cuda(), weights(2, 1, 100, 90).cuda()
    compiled = torch.compile(masked_average_pool, fullgraph=True)
    wanted = ssp_masked_average_pool(features.double(), masks[:, 0].double())
    assert_close(compiled(features, masks)[:, 0], wanted)
