"""The operations against float64, over shapes, dtypes, layouts and masks that nobody chose."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from fastfss.ops import (
    _native_call,
    center_pivot_conv4d,
    dense_correlation,
    dense_match,
    dense_match_sums,
    masked_average_pool,
    prototype_match,
)
from tests.tolerances import assert_close

few = settings(
    derandomize=True,
    deadline=None,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
BACKENDS = ["auto", "reference", *(["native"] if _native_call.module is not None else [])]
# What each backend takes; float16 has no native code, and is served by the reference.
DTYPES = {
    "native": [torch.float32, torch.bfloat16],
    "auto": [torch.float32, torch.bfloat16, torch.float64],
    "reference": [torch.float32, torch.bfloat16, torch.float64],
}
SIDES, CHANNELS, SEEDS = st.integers(1, 19), st.integers(1, 67), st.integers(0, 2**31)
LAYOUTS = ["contiguous", "channels last", "every second column", "turned", "expanded"]


@st.composite
def arguments(draw: st.DrawFn) -> tuple[str, torch.dtype, torch.Generator]:
    """A backend, a dtype that it takes, and where numbers come from."""
    backend = draw(st.sampled_from(BACKENDS))
    dtype = draw(st.sampled_from(DTYPES[backend]))
    return backend, dtype, torch.Generator().manual_seed(draw(SEEDS))


def laid_out(maps: Tensor, layout: str) -> Tensor:
    """The same values (B, C, h, w), another way in memory; expanded: the first of the batch."""
    if layout == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    if layout == "every second column":
        wide = torch.full((*maps.shape[:3], 2 * maps.shape[3]), torch.nan, dtype=maps.dtype)
        wide[..., ::2] = maps
        return wide[..., ::2]
    if layout == "turned":
        return maps.transpose(2, 3).contiguous().transpose(2, 3)
    return maps[:1].expand(maps.shape) if layout == "expanded" else maps


def drawn_mask(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    """Weights >= 0."""
    soft = torch.rand(shape, generator=generator)
    return {
        "empty": torch.zeros(shape),
        "ones": torch.ones(shape),
        "soft": soft,
        "sparse": soft * (soft > 0.9),
        "bool": soft > 0.5,
    }[kind]


MASKS = st.sampled_from(["empty", "ones", "soft", "sparse", "bool"])


@few
@given(
    arguments(),
    *(st.integers(0, 3), CHANNELS, st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES)),
    *(st.integers(0, 3), MASKS, st.sampled_from(LAYOUTS)),
    *(st.sampled_from(["mask", "features"]), st.booleans()),
)
def test_pooling_is_the_weighted_mean(
    how: tuple[str, torch.dtype, torch.Generator], batch: int, channels: int,
    grid: tuple[int, int], size: tuple[int, int], count: int, kind: str, layout: str,
    resize: str, corners: bool,
) -> None:  # fmt: skip
    backend, dtype, generator = how
    features = torch.randn(batch, channels, *grid, generator=generator).to(dtype)
    features = laid_out(features, layout)
    masks = drawn_mask((batch, count, *size), kind, generator)
    options = {"resize": resize, "align_corners": corners}
    found = masked_average_pool(features, masks, backend=backend, **options)
    exact = masked_average_pool(features.double(), masks, backend="reference", **options)
    assert found.dtype == dtype and not found.isnan().any()
    # Means of numbers of either sign cancel: errors are measured by what was added up.
    scale = max(1.0, float(exact.abs().max()) if exact.numel() else 0.0)
    assert_close(torch.cat([found.flatten(), found.new_tensor([scale])]),
                 torch.cat([exact.flatten(), exact.new_tensor([scale])]))  # fmt: skip
    if kind == "empty":
        assert not found.any()
    if kind == "ones" and size == grid:
        mean = features.double().mean(dim=(2, 3))[:, None].expand(-1, count, -1)
        share = math.prod(grid) / (math.prod(grid) + 1e-5)
        assert torch.allclose(exact, mean * share, atol=1e-9)


@few
@given(
    arguments(),
    *(st.integers(0, 2), CHANNELS, st.tuples(SIDES, SIDES), st.integers(1, 5)),
    *(st.sampled_from(["shared", "per image", "per position"]), st.sampled_from(LAYOUTS)),
)
def test_scores_are_cosines(
    how: tuple[str, torch.dtype, torch.Generator], batch: int, channels: int,
    grid: tuple[int, int], count: int, form: str, layout: str,
) -> None:  # fmt: skip
    backend, dtype, generator = how
    features = torch.randn(batch, channels, *grid, generator=generator).to(dtype)
    features = laid_out(features, layout)
    shape = {"shared": (count, channels), "per image": (batch, count, channels)}
    shape["per position"] = (batch, count, channels, *grid)
    prototypes = torch.randn(shape[form], generator=generator).to(dtype)
    prototypes[..., :1, :] = 0  # of norm 0, or a channel of zeros
    found = prototype_match(features, prototypes, scale=10.0, backend=backend)
    exact = prototype_match(features.double(), prototypes.double(), scale=10.0, backend="reference")
    assert found.shape == (batch, count, *grid)
    ten = found.new_tensor([10.0])
    assert_close(torch.cat([found.flatten(), ten]), torch.cat([exact.flatten(), ten.double()]))
    assert (found.abs() <= 10.1).all()
    # Powers of two are exact in every dtype.
    again = prototype_match(4 * features, prototypes / 8, scale=10.0, backend=backend)
    assert_close(torch.cat([again.flatten(), ten]), torch.cat([found.flatten(), ten]))


@few
@given(
    arguments(),
    *(st.integers(1, 2), CHANNELS, st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES)),
    *(st.integers(1, 9), MASKS, st.sampled_from(LAYOUTS)),
    *(st.sampled_from(["softmax", "max", "sums"]), st.sampled_from([0.5, 10.0, 20.0])),
)
def test_matching_does_not_depend_on_the_order_of_positions(
    how: tuple[str, torch.dtype, torch.Generator], batch: int, channels: int,
    grid: tuple[int, int], other: tuple[int, int], values: int, kind: str, layout: str,
    reduce: str, scale: float,
) -> None:  # fmt: skip
    backend, dtype, generator = how
    query = torch.randn(batch, channels, *grid, generator=generator).to(dtype)
    key = torch.randn(batch, channels, *other, generator=generator).to(dtype)
    value = torch.randn(batch, values, *other, generator=generator).to(dtype)
    mask = drawn_mask((batch, *other), kind, generator)

    def match(q: Tensor, k: Tensor, v: Tensor, m: Tensor, by: str) -> list[Tensor]:
        if reduce == "sums":
            return list(dense_match_sums(q, k, v, m, scale=scale, backend=by))
        value = None if reduce == "max" else v
        return [dense_match(q, k, value, m, scale=scale, reduce=reduce, backend=by)]

    found = match(laid_out(query, layout), laid_out(key, layout), value, mask, backend)
    same = (laid_out(query, layout).double(), laid_out(key, layout).double(), value.double())
    exact = match(*same, mask, "reference")
    order = torch.randperm(math.prod(other), generator=generator)

    def permuted(maps: Tensor) -> Tensor:
        return maps.flatten(-2)[..., order].view(maps.shape)

    moved = laid_out(key, layout).clone()
    again = match(
        laid_out(query, layout), permuted(moved), permuted(value), permuted(mask), backend
    )
    # Unit vectors of 8 bits: a cosine is off by up to 2^-8, an exponential by that times the scale;
    # allowed is twice that.
    for one, wanted, other_order in zip(found, exact, again, strict=True):
        assert not one.isnan().any()
        if kind == "empty":
            assert not one.any() and not other_order.any()
        bound = 8e-3 * scale if dtype == torch.bfloat16 else 2e-5 * max(1.0, scale)
        size = max(1e-30, float(wanted.abs().max()), 1.0 if reduce == "softmax" else 0.0)
        for result in (one, other_order):
            assert float((result.double() - wanted).abs().max()) <= max(bound, 1.6e-2 * (
                dtype == torch.bfloat16)) * size  # fmt: skip


@few
@given(
    arguments(),
    *(st.integers(0, 2), st.lists(st.integers(1, 40), min_size=1, max_size=3)),
    *(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.booleans()),
    st.sampled_from(LAYOUTS),
)
def test_correlations_are_cosines(
    how: tuple[str, torch.dtype, torch.Generator], batch: int, channels: list[int],
    grid: tuple[int, int], other: tuple[int, int], clamp: bool, layout: str,
) -> None:  # fmt: skip
    backend, dtype, generator = how

    def maps(size: tuple[int, int]) -> list[Tensor]:
        drawn = [torch.randn(batch, c, *size, generator=generator).to(dtype) for c in channels]
        return [laid_out(one, layout) for one in drawn]

    queries, supports = maps(grid), maps(other)
    found = dense_correlation(queries, supports, clamp=clamp, backend=backend)
    doubles = ([one.double() for one in maps] for maps in (queries, supports))
    exact = dense_correlation(*doubles, clamp=clamp, backend="reference")
    assert found.shape == (batch, len(channels), *grid, *other)
    one = found.new_tensor([1.0])
    assert_close(torch.cat([found.flatten(), one]), torch.cat([exact.flatten(), one.double()]))
    assert (found >= (0 if clamp else -1.02)).all() and (found <= 1.02).all()


SMALL = st.integers(1, 6)


@few
@given(
    arguments(),
    *(st.integers(1, 2), st.integers(1, 9), st.integers(1, 17)),
    *(st.tuples(SMALL, SMALL, SMALL, SMALL), st.sampled_from([1, 3, 5]), st.integers(1, 3)),
)
def test_center_pivots_are_the_reference(
    how: tuple[str, torch.dtype, torch.Generator], batch: int, inputs: int, outputs: int,
    grid: tuple[int, ...], kernel: int, stride: int,
) -> None:  # fmt: skip
    backend, dtype, generator = how
    shapes = [
        (batch, inputs, *grid),
        *((outputs, inputs, kernel, kernel), (outputs,)),
        *((outputs, inputs, kernel, kernel), (outputs,)),
    ]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    found = center_pivot_conv4d(*tensors, stride=stride, backend=backend)
    doubles = [one.double() for one in tensors]
    exact = center_pivot_conv4d(*doubles, stride=stride, backend="reference")
    assert found.dtype == dtype
    # Sums of kernel^2 x inputs products of either sign cancel where few positions are summed.
    scale = max(float(exact.abs().max()), math.sqrt(2.0 * inputs))
    assert_close(torch.cat([found.flatten(), found.new_tensor([scale])]),
                 torch.cat([exact.flatten(), found.new_tensor([scale]).double()]))  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images_and_no_masks_give_nothing(backend: str) -> None:
    features = torch.randn(2, 3, 4, 5)
    assert masked_average_pool(features, torch.ones(2, 0, 4, 5), backend=backend).shape == (2, 0, 3)
    assert prototype_match(features[:0], torch.ones(4, 3), backend=backend).shape == (0, 4, 4, 5)
