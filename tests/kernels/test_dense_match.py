from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import dense_match, dense_match_sums, explain
from fastfss.ops.dense_match import dense_match_reference, dense_match_sums_reference
from tests.kernels.helpers import assert_like_plain, captured, double, random, weights
from tests.kernels.matching import LONG, ODD, SIZES, Size
from tests.tolerances import assert_close


@pytest.fixture(params=["one pass", "blocks"])
def path(device: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the forward at any number of value channels; blocks of one row of tiles."""
    from fastfss.kernels import _dense_match_blocks
    from fastfss.kernels import dense_match as kernels

    blocks = request.param == "blocks"
    monkeypatch.setattr(kernels, "MOST_VALUES", 0 if blocks else 256)
    monkeypatch.setattr(_dense_match_blocks, "WORKSPACE", 1)


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    *,
    scale: float,
    normalize: bool = True,
    reduce: str = "softmax",
) -> Tensor:
    q, k, v, m = (None if t is None else t.cpu().double() for t in (query, key, value, mask))
    assert q is not None and k is not None
    flat = None if m is None else m.flatten(1)
    return dense_match_reference(q, k, v, flat, scale, normalize, reduce, 1e-8)


# Bounded logits; a largest logit found on the way; float16's narrower bound lies between.
OPTIONS: list[dict[str, Any]] = [
    {"scale": 4.0},
    {"scale": 80.0},
    {"scale": 0.3, "normalize": False},
    {"scale": -12.0},
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_softmax_equals_the_reference(device, dtype, size):
    *maps, mask = size.maps(dtype, device)
    for options in OPTIONS if size == ODD else OPTIONS[:2]:
        result = dense_match(*maps, mask, **options, backend="triton")
        assert result.dtype == dtype
        assert_close(result.cpu(), exact(*maps, mask, **options))


@pytest.mark.usefixtures("path")
def test_without_a_mask_every_key_counts(device, dtype):
    *maps, _ = ODD.maps(dtype, device)
    for options in OPTIONS[:2]:
        result = dense_match(*maps, **options, backend="triton")
        assert_close(result.cpu(), exact(*maps, None, **options))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maximum_equals_the_reference(device, dtype, size):
    query, key, _, mask = size.maps(dtype, device)
    for options in ({"scale": -3.0}, {"scale": 0.3, "normalize": False}):
        result = dense_match(query, key, mask=mask, reduce="max", backend="triton", **options)
        assert_close(result.cpu(), exact(query, key, None, mask, reduce="max", **options))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("scale", [2.0, 30.0])
@pytest.mark.parametrize("size", [ODD, LONG], ids=str)
def test_sums_equal_the_reference(device, dtype, size, scale):
    *maps, soft = size.maps(dtype, device)
    signed = soft * (random(*soft.shape, seed=8) + 0.5).sign().to(device)
    ours = dense_match_sums(*maps, signed, scale=scale, backend="triton")
    wanted = dense_match_sums_reference(*double(*maps, signed.flatten(1)), scale, 1e-8)
    for mine, right in zip(ours, wanted, strict=True):
        assert mine.dtype == torch.float32
        # An error of a cosine, 1e-6 in three tf32 products, is 30 times that in e^(30 cosine).
        wide = dtype == torch.float32 and scale > 2
        assert_close(mine.cpu(), right, dtype=torch.float16 if wide else dtype)


@pytest.mark.usefixtures("path")
def test_layouts_and_one_tensor_in_all_places(device):
    *maps, mask = ODD.maps(torch.float32, device)
    wanted = exact(*maps, mask, scale=4.0)
    *last, _ = ODD.maps(torch.float32, device, last=True)
    result = dense_match(*last, mask, scale=4.0, backend="triton")
    assert_close(result.cpu(), wanted)
    assert result.is_contiguous(memory_format=torch.channels_last)
    cut = [torch.cat([m, m], dim=3)[..., : m.shape[3]] for m in maps]
    assert_close(dense_match(*cut, mask, scale=4.0, backend="triton").cpu(), wanted)
    query, own = maps[0], weights(2, 5, 7).to(device)
    same = dense_match(query, query, mask=own, scale=4.0, backend="triton")
    assert_close(same.cpu(), exact(query, query, query, own, scale=4.0))


@pytest.mark.usefixtures("path")
def test_empty_mask_gives_zero(device):
    query, key, value, mask = ODD.maps(torch.float32, device)
    mask[1] = 0
    for options in ({}, {"scale": 100.0}):
        result = dense_match(query, key, value, mask, backend="triton", **options)
        assert result[1].abs().max() == 0
        assert result[0].abs().max() > 0
    largest = dense_match(query, key, mask=mask, reduce="max", backend="triton")
    assert largest[1].abs().max() == 0
    for part in dense_match_sums(query, key, value, mask, backend="triton"):
        assert part[1].abs().max() == 0


@pytest.mark.usefixtures("path")
def test_object_of_one_position_gives_its_value_everywhere(device):
    query, key, value, mask = ODD.maps(torch.float32, device)
    mask.zero_()[:, 2, 5] = 1
    for scale in (1.0, 100.0):
        result = dense_match(query, key, value, mask, scale=scale, backend="triton")
        assert_close(result, value[:, :, 2:3, 5:6].expand_as(result))


@pytest.mark.usefixtures("path")
def test_nan_stays_in_its_query_and_without_weight_nothing_is_read(device):
    query, key, value, mask = ODD.maps(torch.float32, device)
    unread = (mask == 0).unsqueeze(1)
    key, value = (x.masked_fill(unread, float("nan")) for x in (key, value))
    query[0, 0, 2, 3] = float("nan")
    for options in ({}, {"scale": 100.0}, {"reduce": "max"}):
        given = None if "reduce" in options else value
        result = dense_match(query, key, given, mask, backend="triton", **options)
        hit = result.isnan() if "reduce" in options else result.isnan().all(dim=1)
        assert hit[0, 2, 3]
        assert int(hit.sum()) == 1
        assert int(result.isnan().sum()) == (1 if "reduce" in options else value.shape[1])


@pytest.mark.usefixtures("path")
def test_huge_logits_stay_finite(device):
    query, key, value, _ = ODD.maps(torch.float32, device)
    options = {"scale": 1e4, "normalize": False}
    result = dense_match(query, key, value, **options, backend="triton")
    best = (double(query)[0].flatten(2).mT @ double(key)[0].flatten(2)).argmax(dim=2)
    wanted = value.cpu().flatten(2).gather(2, best.unsqueeze(1).expand(-1, value.shape[1], -1))
    assert_close(result.cpu().flatten(2), wanted)


def test_blocks_are_whole_items_or_even_parts_of_one(monkeypatch):
    blocks = pytest.importorskip("fastfss.kernels._dense_match_blocks")
    monkeypatch.setattr(blocks, "interpreted", lambda: False)

    def of(batch: int, queries: int, pitch: int) -> list[tuple[int, ...]]:
        made = blocks.blocks_of(batch, queries, pitch)
        return [(one.start, one.stop, one.first, one.rows) for one in made]

    assert of(2, 3600, 3600) == [(0, 1, 0, 3600), (1, 2, 0, 3600)]
    assert of(9, 1024, 2048) == [(0, 4, 0, 1024), (4, 9, 0, 1024)]
    assert of(1, 3600, 5 * 3600) == [
        *((0, 1, 0, 896), (0, 1, 896, 896), (0, 1, 1792, 896), (0, 1, 2688, 912)),
    ]
    assert of(1, 100, 1 << 24) == [(0, 1, 0, 100)]
    assert of(0, 5, 16) == of(5, 0, 16) == []


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all keys"])
def test_some_items_at_a_time_give_the_same(device, monkeypatch, masked):
    from fastfss.kernels import _dense_match_blocks
    from fastfss.kernels import dense_match as kernels

    *maps, mask = ODD.maps(torch.float32, device, batch=3)
    given = mask if masked else None
    monkeypatch.setattr(kernels, "MOST_VALUES", 0)
    for options in OPTIONS[:2]:
        found = []
        for items in (3, 2, 1):
            # 35 queries, 18 keys in rows of 32.
            monkeypatch.setattr(_dense_match_blocks, "WORKSPACE", items * 35 * 32)
            found.append(dense_match(*maps, given, **options, backend="triton"))
            assert torch.equal(found[-1], found[0])
        assert_close(found[0].cpu(), exact(*maps, given, **options))


def test_explain_names_triton(device):
    *maps, mask = ODD.maps(torch.float16, device)
    found = explain("dense_match", *maps, mask)
    assert found.backend == "triton"
    assert set(found.reasons) == {"native", "cuda", "reference"}
    wide = [m.double() for m in maps]
    found = explain("dense_match", *wide, mask)
    assert found.backend == "reference"
    assert "float64" in found.reasons["triton"]


def test_opcheck(device):
    *maps, mask = ODD.maps(torch.float32, device)
    maps = [m.requires_grad_() for m in maps]
    ops = torch.ops.fastfss
    args = (*maps, mask.flatten(1), 2.0, True, "softmax", 1e-8)
    torch.library.opcheck(ops.dense_match.default, args)
    torch.library.opcheck(ops.dense_match_sums.default, (*args[:5], 1e-8))


# ---- On a GPU, at real sizes

SSP = Size(1024, (60, 60), (60, 60), 1024)
DCAMA = Size(64, (48, 48), (48, 48), 1)
WIDE = Size(256, (50, 50), (50, 50), 200)


def plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, normalize: bool
) -> Tensor:
    """The formula in the dtype of its arguments throughout, as anyone would write it."""
    q, k, v, m = (t.flatten(2).to(query.dtype) for t in (query, key, value, mask.unsqueeze(1)))
    if normalize:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = scale * (q.mT @ k)
    weighted = (logits - logits.amax(dim=2, keepdim=True)).exp() * m
    result = weighted @ v.mT / weighted.sum(dim=2, keepdim=True)
    return result.mT.unflatten(2, query.shape[2:])


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (SSP, {"scale": 2.0}),
        (SSP, {"scale": 60.0}),
        (DCAMA, {"scale": 0.125, "normalize": False}),
        (WIDE, {"scale": 10.0}),
    ],
    ids=["ssp", "ssp steep", "dcama", "wide"],
)
def test_real_sizes(device, size, options, batch, dtype, last):
    *maps, mask = size.maps(dtype, device, last=last, batch=batch)
    result = dense_match(*maps, mask, **options)
    wide = [t.double() for t in maps]
    normalize = options.get("normalize", True)
    wanted = dense_match_reference(
        *wide, mask.double().flatten(1), options["scale"], normalize, "softmax", 1e-8
    )
    assert_close(result, wanted)
    simple = plain(*maps, mask, options["scale"], normalize)
    assert_like_plain(result, simple, wanted)
    assert torch.equal(dense_match(*maps, mask, **options), result)
    assert torch.equal(captured(lambda: dense_match(*maps, mask, **options))(), result)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_real_sizes_of_the_maximum(device, batch, dtype):
    size = Size(2048, (60, 60), (60, 60), 1)
    query, key, _, mask = size.maps(dtype, device, batch=batch)
    mask = mask * (weights(batch, 60, 60, share=0.2, seed=9) > 0).cuda()
    result = dense_match(query, key, mask=mask, reduce="max")
    wanted = dense_match_reference(
        query.double(), key.double(), None, mask.flatten(1).double(), 1.0, True, "max", 1e-8
    )
    assert_close(result, wanted)
    simple = F.normalize(query.flatten(2), dim=1).mT @ F.normalize(key.flatten(2), dim=1)
    simple = simple.masked_fill(mask.flatten(1).unsqueeze(1) == 0, -torch.inf).amax(dim=2)
    assert_like_plain(result, simple.view_as(result), wanted)
    again = captured(lambda: dense_match(query, key, mask=mask, reduce="max"))
    assert torch.equal(again(), result)


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_number_of_keys(device):
    query = torch.randn(1, 1024, 60, 60, device="cuda", dtype=torch.bfloat16)
    peaks = []
    for shots in (1, 5):
        key = torch.randn(1, 1024, shots * 60, 60, device="cuda", dtype=torch.bfloat16)
        mask = torch.ones(1, shots * 60, 60, device="cuda")
        dense_match(query, key, mask=mask)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        dense_match(query, key, mask=mask)
        # What the keys' rows take is a copy of the keys, not of the matrix.
        copies = key.numel() * key.element_size()
        peaks.append(torch.cuda.max_memory_allocated() - before - copies)
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.gpu
def test_it_equals_eager_when_compiled(device):
    *maps, mask = ODD.maps(torch.float32, device)
    compiled = torch.compile(dense_match, fullgraph=True)
    assert torch.equal(compiled(*maps, mask), dense_match(*maps, mask))
    both = torch.compile(dense_match_sums, fullgraph=True)(*maps, mask)
    for one, other in zip(both, dense_match_sums(*maps, mask), strict=True):
        assert torch.equal(one, other)
