from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.ops import dense_match, dense_match_sums
from tests.kernels.helpers import assert_like_plain, captured, double, gradients, random
from tests.kernels.matching import LONG, ODD, Size
from tests.tolerances import assert_close


@pytest.fixture
def small_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row of tiles."""
    from fastfss.kernels import _dense_match_blocks

    monkeypatch.setattr(_dense_match_blocks, "WORKSPACE", 1)


def directions(size: Size, batch: int = 2) -> list[Tensor]:
    shapes = (batch, size.values, *size.query), (batch, *size.query)
    return [random(*shape, seed=seed) for seed, shape in enumerate(shapes, 20)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all keys"])
@pytest.mark.parametrize(
    "options",
    [{"scale": 4.0}, {"scale": 80.0}, {"scale": 0.3, "normalize": False}],
    ids=["bounded", "steep", "products"],
)
def test_softmax_gradients_equal_the_references(device, dtype, options, masked):
    *maps, mask = ODD.maps(dtype, device, last=options["scale"] == 80.0)
    chosen = mask if masked else None
    ours = gradients(
        lambda *t: dense_match(*t, chosen, backend="triton", **options), maps, directions(ODD)[:1]
    )
    chosen = double(mask)[0] if masked else None
    wanted = gradients(
        lambda *t: dense_match(*t, chosen, backend="reference", **options),
        double(*maps),
        directions(ODD)[:1],
    )
    for mine, right, given in zip(ours, wanted, maps, strict=True):
        assert mine.dtype == dtype
        assert_close(mine.cpu(), right)
        assert mine.stride() == given.stride()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [ODD, LONG], ids=str)
def test_gradients_of_sums_equal_the_references(device, dtype, size):
    *maps, soft = size.maps(dtype, device)
    signed = soft * (random(*soft.shape, seed=8) + 0.5).sign().to(device)
    ours = gradients(
        lambda *t: dense_match_sums(*t, signed, scale=2.0, backend="triton"),
        maps,
        directions(size),
    )
    wanted = gradients(
        lambda *t: dense_match_sums(*t, *double(signed), scale=2.0, backend="reference"),
        double(*maps),
        directions(size),
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert_close(mine.cpu(), right)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all keys"])
def test_some_items_at_a_time_give_the_same_gradients(device, monkeypatch, masked):
    from fastfss.kernels import _dense_match_blocks

    *maps, mask = ODD.maps(torch.float32, device, batch=3)
    given, along = mask if masked else None, directions(ODD, 3)[:1]
    found = []
    for items in (3, 2, 1):
        # 35 queries, 18 keys in rows of 32.
        monkeypatch.setattr(_dense_match_blocks, "WORKSPACE", items * 35 * 32)
        found.append(gradients(lambda *t: dense_match(*t, given, backend="triton"), maps, along))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_one_tensor_in_all_places(device):
    x, _, _, _ = ODD.maps(torch.float32, device)
    x[0, :, 1, 1] = 1e-6  # below eps: the norm is a constant there
    options = {"scale": 2.0, "eps": 1e-3}
    along = [random(*x.shape, seed=20)]
    (ours,) = gradients(lambda t: dense_match(t, t, backend="triton", **options), [x], along)
    (wanted,) = gradients(
        lambda t: dense_match(t, t, backend="reference", **options), double(x), along
    )
    assert_close(ours.cpu(), wanted)


@pytest.mark.parametrize("wanted", range(3), ids=["query", "key", "value"])
def test_gradient_of_one_input_alone(device, wanted):
    maps: list[Any] = list(ODD.maps(torch.float32, device))
    every = gradients(lambda *t: dense_match(*t, maps[3]), maps[:3], directions(ODD)[:1])

    def function(one: Tensor) -> Tensor:
        return dense_match(*(one if at == wanted else maps[at] for at in range(3)), maps[3])

    (alone,) = gradients(function, [maps[wanted]], directions(ODD)[:1])
    assert torch.equal(alone, every[wanted])


def test_empty_mask_has_no_gradient(device):
    *maps, mask = ODD.maps(torch.float32, device)
    mask[1] = 0
    ours = gradients(lambda *t: dense_match(*t, mask), maps, directions(ODD)[:1])
    for mine in ours:
        assert mine[1].abs().max() == 0
        assert mine[0].abs().max() > 0


# ---- On a GPU, at real sizes

SSP = Size(1024, (60, 60), (60, 60), 1024)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_real_sizes(device, batch, dtype):
    *maps, mask = SSP.maps(dtype, device, batch=batch)
    along = [direction.cuda() for direction in directions(SSP, batch)[:1]]
    ours = gradients(lambda *t: dense_match(*t, mask, scale=2.0), maps, along)
    wide = [t.double() for t in maps]
    wanted = gradients(
        lambda *t: dense_match(*t, mask, scale=2.0, backend="reference"), wide, along
    )

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k = (t.flatten(2) / t.flatten(2).norm(dim=1, keepdim=True) for t in (query, key))
        weighted = (2.0 * (q.mT @ k)).exp() * mask.flatten(1).unsqueeze(1).to(q.dtype)
        result = weighted @ value.flatten(2).mT / weighted.sum(dim=2, keepdim=True)
        return result.mT.unflatten(2, query.shape[2:])

    simple = gradients(plain, maps, along)
    for mine, other, right in zip(ours, simple, wanted, strict=True):
        assert_close(mine, right)
        assert_like_plain(mine, other, right)
    again = gradients(lambda *t: dense_match(*t, mask, scale=2.0), maps, along)
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


@pytest.mark.gpu
def test_backward_waits_for_nothing(device):
    *maps, mask = Size(64, (20, 20), (20, 20), 64).maps(torch.bfloat16, device)
    grad = torch.randn_like(maps[0])
    args = (grad, *maps, mask.flatten(1), 2.0, True, "softmax", 1e-8, [True, True, True])
    function = torch.ops.fastfss.dense_match_backward.default
    replay = captured(lambda: function(*args))
    for one, other in zip(replay(), function(*args), strict=True):
        assert torch.equal(one, other)
