from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call, dense_match, dense_match_sums, explain
from fastfss.ops.dense_match import dense_match_reference, dense_match_sums_reference
from tests.methods.published_ssp import published_self_support
from tests.published import dcama_attention, pfenet_prior
from tests.tolerances import assert_at_most_twice_the_error, assert_close

native = pytest.mark.skipif(_native_call.module is None, reason="built without native code")
BACKENDS = [pytest.param("native", marks=native), "reference"]
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Size:
    """Panels hold 48 positions (64 with AMX), blocks four panels, tiles 4 to 8 channels."""

    channels: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    values: int

    def __str__(self) -> str:
        return f"{self.channels}-{self.query}-{self.key}-{self.values}".replace(" ", "")


SIZES = [
    Size(1, (1, 1), (1, 1), 1),
    Size(7, (7, 5), (3, 4), 3),
    Size(48, (96,), (192,), 16),
    Size(33, (13, 17), (15, 14), 20),
    Size(200, (5, 10), (4, 65), 65),
]


def maps(
    channels: int,
    grid: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    last: bool = False,
    batch: int = 2,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(batch, channels, *grid, generator=generator).to(dtype)
    return made.movedim(1, -1).contiguous().movedim(-1, 1) if last else made


def weights(grid: tuple[int, ...], *, share: float = 0.7, seed: int = 3, batch: int = 2) -> Tensor:
    """Soft weights, zero in 1 - share of the positions; the first position always has one."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(batch, *grid, generator=generator) + 0.1
    made = made * (torch.rand(batch, *grid, generator=generator) < share)
    made.flatten(1)[:, 0] = 0.5
    return made


def exact(*tensors: Tensor | None, **options: Any) -> Tensor:
    """dense_match in float64."""
    doubles = [None if t is None else t.double() for t in tensors]
    return dense_match(*doubles, **options, backend="reference")  # type: ignore[arg-type]


def plain_match(q: Tensor, k: Tensor, v: Tensor, m: Tensor, scale: float) -> Tensor:
    """The formula in the dtype of its arguments throughout, as anyone would write it."""
    q, k, v, m = q.flatten(2), k.flatten(2), v.flatten(2), m.flatten(1).to(q.dtype)
    unit_q, unit_k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    e = (scale * (unit_q.transpose(1, 2) @ unit_k)).exp() * m.unsqueeze(1)
    return (e @ v.transpose(1, 2) / e.sum(dim=2, keepdim=True)).transpose(1, 2)


# ---- Against float64


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_softmax_equals_float64(isa: str, size: Size, dtype: torch.dtype, last: bool) -> None:
    q = maps(size.channels, size.query, dtype, last=last)
    k = maps(size.channels, size.key, dtype, seed=1, last=last)
    v = maps(size.values, size.key, dtype, seed=2, last=last)
    m = weights(size.key)
    for options in ({"scale": 10.0}, {"scale": 80.0}, {"scale": 0.3, "normalize": False}):
        ours = dense_match(q, k, v, m, **options, backend="native")  # type: ignore[arg-type]
        assert ours.dtype == dtype
        assert_close(ours, exact(q, k, v, m, **options))
    wanted = exact(q, k, v, m, scale=10.0)
    plain = plain_match(q, k, v, m, 10.0).view_as(wanted)
    ours = dense_match(q, k, v, m, scale=10.0, backend="native")
    assert_at_most_twice_the_error(ours, plain, wanted)


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maximum_equals_float64(isa: str, size: Size, dtype: torch.dtype, last: bool) -> None:
    q = maps(size.channels, size.query, dtype, last=last)
    k = maps(size.channels, size.key, dtype, seed=1, last=last)
    m = weights(size.key)
    for options in ({"scale": -3.0}, {"scale": 0.3, "normalize": False}):
        ours = dense_match(q, k, mask=m, reduce="max", backend="native", **options)  # type: ignore[arg-type]
        assert ours.dtype == torch.float32
        assert_close(ours, exact(q, k, None, m, reduce="max", **options))


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_equal_float64(isa: str, size: Size, dtype: torch.dtype, last: bool) -> None:
    q = maps(size.channels, size.query, dtype, last=last)
    k = maps(size.channels, size.key, dtype, seed=1, last=last)
    v = maps(size.values, size.key, dtype, seed=2, last=last)
    w = weights(size.key) * (maps(1, size.key, seed=4)[:, 0] + 0.5).sign()
    ours = dense_match_sums(q, k, v, w, scale=2.0, backend="native")
    wanted = dense_match_sums_reference(
        q.double(), k.double(), v.double(), w.flatten(1).double(), 2.0, 1e-8
    )
    for mine, right in zip(ours, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, right, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_tensor_in_all_places_equals_copies(
    isa: str, dtype: torch.dtype, share: float, threads: int
) -> None:
    """Queries that are the keys take half the products; the result is the same."""
    x, m = maps(21, (37, 33), dtype, batch=1), weights((37, 33), share=share, batch=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = dense_match_sums(x, x, x, m, scale=2.0, backend="native")
        also = dense_match(x, x, mask=m, scale=2.0, backend="native")
        other_value = dense_match(x, x, x[:, :9], m, scale=2.0, backend="native")
    finally:
        torch.set_num_threads(before)
    copies = dense_match_sums(x, x.clone(), x.clone(), m, scale=2.0, backend="native")
    for mine, plain in zip(ours, copies, strict=True):
        assert_close(mine, plain, dtype=dtype)
    wanted = exact(x, x, x, m, scale=2.0)
    assert_close(also, wanted)
    assert_close(other_value, wanted[:, :9])


@native
def test_threads_give_the_same_and_calls_repeat_to_the_bit() -> None:
    q, k, m = maps(40, (23, 29)), maps(40, (31, 17), seed=1), weights((31, 17))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = dense_match(q, k, mask=m, backend="native")
            pairs = dense_match_sums(q, q, q, weights((23, 29)), backend="native")
            again = dense_match_sums(q, q, q, weights((23, 29)), backend="native")
            assert torch.equal(pairs[0], again[0]) and torch.equal(pairs[1], again[1])
            if threads == 1:
                first = rows, pairs
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rows, first[0])
    assert_close(pairs[0], first[1][0])


# ---- Against the published code


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.2, 0.75])
def test_it_equals_ssps_published_local_prototypes(backend: Any, share: float) -> None:
    x = maps(24, (12, 13))
    selected = weights((12, 13), share=share) > 0
    forced = [(chosen.flatten(), chosen.flatten()) for chosen in selected]
    wanted = published_self_support(x, x.new_zeros(2, 2, 12, 13), forced)[2]
    assert_close(dense_match(x, x, x, selected, scale=2.0, backend=backend), wanted)
    numerator, denominator = dense_match_sums(x, x, x, selected, scale=2.0, backend=backend)
    assert_close(numerator / denominator.unsqueeze(1), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_pfenets_published_prior(backend: Any) -> None:
    q, s, m = maps(24, (12, 13)), maps(24, (12, 13), seed=1), weights((12, 13)) > 0
    # The published maximum also runs over the blanked positions, whose cosine is 0.
    ours = dense_match(q, s, mask=m, reduce="max", backend=backend).clamp_min(0)
    assert_close(ours, pfenet_prior(q, s, m))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_dcamas_published_attention(backend: Any) -> None:
    q, s, m = maps(16, (12, 13)), maps(16, (12, 13), seed=1), maps(1, (12, 13), seed=2).sigmoid()
    ours = dense_match(q, s, m, scale=16**-0.5, normalize=False, backend=backend)
    assert_close(ours, dcama_attention(q, s, m))


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_the_changed_positions_equals_starting_again(backend: Any) -> None:
    x, first = maps(30, (20, 21)), weights((20, 21)) > 0
    second = first ^ (weights((20, 21), share=0.05, seed=8) > 0)
    change = second.float() - first.float()
    parts = [
        dense_match_sums(x, x, x, w, scale=2.0, backend=backend) for w in (first.float(), change)
    ]
    wanted = dense_match_sums(x, x, x, second, scale=2.0, backend=backend)
    for before, added, right in zip(*parts, wanted, strict=True):
        assert_close(before + added, right)


# ---- Edges


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_mask_gives_zero(backend: Any, dtype: torch.dtype) -> None:
    q, k = maps(6, (4, 5), dtype), maps(6, (3, 3), dtype, seed=1)
    m = torch.ones(2, 3, 3)
    m[1] = 0
    for options in ({}, {"scale": 100.0}, {"reduce": "max"}):
        result = dense_match(q, k, mask=m, backend=backend, **options)  # type: ignore[arg-type]
        assert result[1].abs().max() == 0
        assert result[0].abs().max() > 0
    for part in dense_match_sums(q, k, k, m, backend=backend):
        assert part[1].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_object_of_one_position_gives_its_value_everywhere(
    backend: Any, dtype: torch.dtype
) -> None:
    q, k = maps(6, (9, 9), dtype), maps(6, (8, 7), dtype, seed=1)
    m = torch.zeros(2, 8, 7, dtype=torch.bool)
    m[:, 3, 6] = True
    for scale in (1.0, 100.0):
        result = dense_match(q, k, mask=m, scale=scale, backend=backend)
        assert_close(result, k[:, :, 3:4, 6:7].expand_as(result))


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits_stay_finite(backend: Any) -> None:
    q, k = maps(16, (9, 11)), maps(16, (14, 15), seed=1)
    result = dense_match(q, k, scale=1e4, normalize=False, backend=backend)
    best = (q.flatten(2).transpose(1, 2) @ k.flatten(2)).argmax(dim=2)
    wanted = k.flatten(2).gather(2, best.unsqueeze(1).expand(-1, 16, -1))
    assert_close(result.flatten(2), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_match_nothing(backend: Any) -> None:
    q, k = maps(5, (3, 3)), maps(5, (4, 4), seed=1)
    q[:, :, 1, 1] = 0
    result = dense_match(q, k, scale=5.0, backend=backend)
    assert_close(result[:, :, 1, 1], k.mean(dim=(2, 3)))


@native
def test_values_without_weight_are_never_read_into_the_result() -> None:
    q, k, m = maps(5, (6, 6)), maps(5, (9, 10), seed=1), weights((9, 10), share=0.5)
    wanted = dense_match(q, k, mask=m)
    k = k.masked_fill((m == 0).unsqueeze(1), float("nan"))
    assert torch.equal(dense_match(q, k, mask=m, backend="native"), wanted)


def test_nan_stays_in_its_query() -> None:
    q, k = maps(5, (6, 6)), maps(5, (9, 10), seed=1)
    q[0, 0, 2, 3] = float("nan")
    for options in ({}, {"scale": 100.0}, {"reduce": "max"}):
        hit = dense_match(q, k, **options).isnan()  # type: ignore[arg-type]
        hit = hit if "reduce" in options else hit.all(dim=1)
        assert hit[0, 2, 3]
        assert int(hit.sum()) == 1


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q, k = maps(4, (5, 6), batch=batch), maps(4, (7, 2), batch=batch, seed=1)
    m = weights((7, 2), batch=batch)
    assert_close(dense_match(q, k, mask=m), dense_match(q, k, mask=m, backend="reference"))
    assert dense_match(q, k, reduce="max").shape == (batch, 5, 6)
    assert [t.shape[0] for t in dense_match_sums(q, k, k, m)] == [batch, batch]


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_the_same(dtype: torch.dtype) -> None:
    q, k, v = maps(11, (9, 8), dtype), maps(11, (6, 10), dtype, seed=1), maps(4, (6, 10), dtype)
    m = weights((6, 10))
    wanted = dense_match(q, k, v, m, scale=3.0, backend="native")

    def sliced(x: Tensor) -> Tensor:
        return torch.cat([x, x, x], dim=3)[..., : x.shape[3]]

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 3).repeat_interleave(2, 1)[:, ::2, :, ::2]

    def last(x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=1).to(memory_format=torch.channels_last)[:, : x.shape[1]]

    for change, copied in ((sliced, True), (spread, False), (last, False)):
        tensors = [change(x) for x in (q, k, v)]
        # The mask's strides count too.
        wide = m.repeat_interleave(3, 0)[::3]
        assert_close(dense_match(*tensors, wide, scale=3.0, backend="native"), wanted)
        assert (explain("dense_match", *tensors, wide).note is not None) == copied


def test_result_keeps_the_querys_memory_format() -> None:
    for last in (False, True):
        q, k = maps(6, (4, 5), last=last), maps(6, (3, 3), seed=1)
        for result in (dense_match(q, k), dense_match_sums(q, k, k, torch.ones(2, 3, 3))[0]):
            assert result.is_contiguous() != last
            assert result.is_contiguous(memory_format=torch.channels_last) == last


@native
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_output_is_written(size: Size, last: bool) -> None:
    q, k = maps(size.channels, size.query, last=last), maps(size.channels, size.key, seed=1)
    m = weights(size.key)
    results = [dense_match(q, k, mask=m), dense_match(q, k, mask=m, reduce="max")]
    results += [*dense_match_sums(q, k, k, m), *dense_match_sums(q, q, q, weights(size.query))]
    results += [dense_match(q, k, mask=m * 0), *dense_match_sums(q, k, k, m * 0)]
    assert all(r.isfinite().all() for r in results)


@native
def test_masks_of_any_dtype_give_the_same() -> None:
    q, k, m = maps(6, (4, 5)), maps(6, (7, 9), seed=1), weights((7, 9)) > 0
    wanted = dense_match(q, k, mask=m)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8):
        assert torch.equal(dense_match(q, k, mask=m.to(dtype)), wanted)


def test_reference_serves_other_dtypes() -> None:
    q, k = maps(6, (4, 5)).half(), maps(6, (7, 9), seed=1).half()
    assert dense_match(q, k).dtype == torch.float16
    assert_close(dense_match(q, k), exact(q, k), dtype=torch.bfloat16)
    assert dense_match_reference(q, k, k, None, 1.0, True, "softmax", 1e-8).dtype == torch.float16
