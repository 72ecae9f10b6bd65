from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import prototype_match
from fastfss.ops.prototype_match import prototype_match_reference
from tests.kernels.helpers import assert_like_plain, captured, double, gradients, laid_out, random
from tests.published import cosine_scores
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact(features: Tensor, prototypes: Tensor, scale: float = 10.0) -> Tensor:
    return prototype_match_reference(*double(features, prototypes), scale, 1e-8)


@pytest.mark.parametrize(  # up to four prototypes no tl.dot: bfloat16 in the interpreter too
    ("dtype", "layout", "count"),
    [
        (torch.float32, "first", 1),
        (torch.float32, "last", 3),
        (torch.float32, "cut", 18),
        (torch.float16, "last", 5),
        (torch.float16, "first", 2),
        (torch.float16, "first", 70),
        (torch.bfloat16, "last", 4),
        (torch.bfloat16, "cut", 1),
    ],
    ids=str,
)
def test_it_equals_the_reference(device, dtype, layout, count):
    features = laid_out(random(2, 37, 3, 7), layout).to(dtype).to(device)
    prototypes = random(2, count, 37, seed=1).to(dtype).to(device)
    result = prototype_match(features, prototypes, scale=10.0, backend="triton")
    assert result.dtype == dtype
    assert_close(result.cpu(), exact(features, prototypes))


@pytest.mark.parametrize(
    ("dtype", "layout", "own_layout"),
    [
        (torch.float32, "first", "first"),
        (torch.float32, "last", "first"),
        (torch.float16, "cut", "last"),
        (torch.bfloat16, "last", "last"),
    ],
    ids=str,
)
def test_a_prototype_for_every_position(device, dtype, layout, own_layout):
    features = laid_out(random(2, 21, 3, 7), layout).to(dtype).to(device)
    prototypes = [laid_out(random(2, 21, 3, 7, seed=s), own_layout) for s in (1, 2)]
    stacked = torch.stack(prototypes, dim=1).to(dtype).to(device)
    result = prototype_match(features, stacked, scale=10.0, backend="triton")
    assert_close(result.cpu(), exact(features, stacked))


def test_shared_prototypes_and_groups(device):
    features, prototypes = random(2, 9, 3, 4).to(device), random(2, 3, 9, seed=1).to(device)
    for reduce in ("max", "mean"):
        result = prototype_match(features, prototypes, reduce=reduce, backend="triton")
        wanted = prototype_match(*double(features, prototypes), reduce=reduce, backend="reference")
        assert_close(result.cpu(), wanted)


def test_zero_features_and_prototypes_score_zero(device):
    features, prototypes = random(1, 9, 3, 4).to(device), random(1, 2, 9, seed=1).to(device)
    features[:, :, 1, 1] = 0
    prototypes[:, 1] = 0
    result = prototype_match(features, prototypes, backend="triton")
    assert result[0, :, 1, 1].abs().max() == 0
    assert result[0, 1].abs().max() == 0
    assert result[0, 0].abs().min(dim=1).values[0] > 0


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("first", (2, 3, 19)), ("last", (2, 1, 19)), ("first", (2, 2, 19, 3, 5)), ("last", None)],
    ids=["first", "last", "each position", "each position, last"],
)
def test_gradients_equal_the_references(device, layout, shape):
    features = laid_out(random(2, 19, 3, 5), layout).to(device)
    prototypes = random(*(shape or (2, 1, 19, 3, 5)), seed=1).to(device)
    features[0, :, 1, 2] = 0
    if shape is None:
        prototypes = laid_out(prototypes[:, 0], "last").unsqueeze(1)
    along = [random(2, prototypes.shape[1], 3, 5, seed=5)]
    options = {"scale": 10.0, "eps": 1e-3}
    tensors = [features, prototypes]
    ours = gradients(
        lambda x, y: prototype_match(x, y, backend="triton", **options), tensors, along
    )
    wanted = gradients(
        lambda x, y: prototype_match(x, y, backend="reference", **options), double(*tensors), along
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right)
    assert ours[0].stride() == features.stride()


def test_gradient_of_one_input_alone(device):
    features, prototypes = random(1, 9, 3, 4).to(device), random(1, 2, 9, seed=1).to(device)
    along = [random(1, 2, 3, 4, seed=5)]
    both = gradients(prototype_match, [features, prototypes], along)
    (of_features,) = gradients(lambda x: prototype_match(x, prototypes), [features], along)
    (of_prototypes,) = gradients(lambda y: prototype_match(features, y), [prototypes], along)
    assert torch.equal(of_features, both[0])
    assert torch.equal(of_prototypes, both[1])


@pytest.mark.parametrize("shape", [(1, 2, 6), (1, 2, 6, 4, 5)], ids=["one", "each position"])
def test_opcheck(device, shape):
    features = random(1, 6, 4, 5).to(device).requires_grad_()
    prototypes = random(*shape, seed=1).to(device).requires_grad_()
    args = (features, prototypes, 10.0, 1e-8)
    torch.library.opcheck(torch.ops.fastfss.prototype_match.default, args)


# ---- On a GPU, at real sizes


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 10, 80])
@pytest.mark.parametrize("batch", [1, 16])
def test_real_sizes(device, batch, count, dtype, layout):
    features = laid_out(random(batch, 1024, 60, 60).cuda().to(dtype), layout)
    prototypes = random(batch, count, 1024, seed=1).cuda().to(dtype)
    result = prototype_match(features, prototypes, scale=10.0)
    wanted = prototype_match_reference(features.double(), prototypes.double(), 10.0, 1e-8)
    assert_close(result, wanted)
    plain = cosine_scores(features, list(prototypes.unbind(dim=1)))
    assert_like_plain(result, plain, wanted)
    assert torch.equal(prototype_match(features, prototypes, scale=10.0), result)
    replay = captured(lambda: prototype_match(features, prototypes, scale=10.0))
    assert torch.equal(replay(), result)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes_with_a_prototype_for_every_position(device, dtype):
    features, prototypes = random(2, 4, 1024, 60, 60).cuda().to(dtype)
    result = prototype_match(features, prototypes.unsqueeze(1), scale=10.0)
    wanted = prototype_match_reference(
        features.double(), prototypes.double().unsqueeze(1), 10.0, 1e-8
    )
    assert_close(result, wanted)
    assert_like_plain(result, cosine_scores(features, [prototypes]), wanted)


@pytest.mark.gpu
def test_it_equals_eager_when_compiled(device):
    features, prototypes = random(2, 64, 30, 30).cuda(), random(2, 3, 64).cuda()
    compiled = torch.compile(prototype_match, fullgraph=True)
    assert torch.equal(compiled(features, prototypes), prototype_match(features, prototypes))
