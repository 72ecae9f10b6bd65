"""The AMX path of center_pivot_conv4d on emulated tiles: packing, gathering, padding, indexing.

Tiles are 16 positions x 32 elements and 32 elements x 16 outputs, blocks 32 x 32, a chunk 256
elements, a group 128 outputs, a strip of the query about 160 positions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.ops import _native_call
from fastfss.ops.center_pivot_conv4d import (
    _native_block,
    center_pivot_conv4d_reference,
    native_weights,
)
from tests.ops.test_center_pivot_conv4d import NATIVE_SHAPES, low_arguments, native
from tests.tolerances import assert_close

pytestmark = native

TILE_SHAPES = [
    *NATIVE_SHAPES,
    (1, 16, 16, (7, 30), (3, 3), 3, 1),  # strips of five rows of the query and of two
    (2, 20, 33, (3, 5), (4, 5), 3, 2),  # taps that are no whole tiles, cut by the grid
    (1, 32, 160, (2, 5), (2, 3), 5, 1),  # two groups of outputs, more than a chunk
    (1, 2, 3, (2, 170), (2, 2), 3, 1),  # a row of the query longer than a strip
]


@pytest.mark.parametrize("shape", TILE_SHAPES)
def test_emulated_tiles_equal_float64(shape: tuple) -> None:
    low, exact = low_arguments(shape, torch.bfloat16)
    stride = shape[-1]
    wanted = center_pivot_conv4d_reference(*exact[:5], stride)
    assert_close(_native_block(*low[:5], None, None, stride, 1, 0.0, True), wanted)
    if wanted.numel() > 1:  # PyTorch normalises no single value
        groups = 2 if shape[2] % 2 == 0 else 1
        normed = torch.nn.functional.group_norm(wanted, groups, *exact[5:]).relu()
        assert_close(_native_block(*low, stride, groups, 1e-5, True), normed)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("shape", TILE_SHAPES)
def test_emulated_tiles_are_exact_on_small_integers(shape: tuple, last: bool) -> None:
    """Integers have no rounding: every element must come from its place, bit for bit."""
    low, _ = low_arguments(shape, torch.bfloat16)
    x, *weights = (one.mul(2).round().clamp(-6, 6) for one in low[:5])
    if last:
        x = x.permute(0, 2, 3, 4, 5, 1).contiguous().permute(0, 5, 1, 2, 3, 4)
    wanted = center_pivot_conv4d_reference(*(one.double() for one in (x, *weights)), shape[-1])
    for pivots in ("both", "one by one"):
        found = sums(x, *weights, stride=shape[-1], together=pivots == "both")
        assert torch.equal(found.double(), wanted), pivots


def sums(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    *,
    stride: int,
    together: bool,
) -> Tensor:
    """On emulated tiles in float32, both pivots in one call or the second added to the first's."""
    assert _native_call.module is not None
    view = _native_call.view
    last = x.permute(0, 2, 3, 4, 5, 1)
    pruned = last[:, :, :, ::stride, ::stride]
    weights = native_weights(support_weight), native_weights(query_weight)
    bias = query_bias.float() + support_bias.float()
    out = torch.full((*pruned.shape[:5], len(bias)), float("nan"))
    over_support, over_query = (view(last), view(weights[0])), (view(pruned), view(weights[1]))
    end = None, None, stride, 1, 0.0, 1, True
    call = _native_call.module.center_pivot_conv4d
    if together:
        call(
            *(over_support[0], over_query[0], over_support[1], over_query[1]),
            *(view(bias), None, view(out), *end),
        )
    else:
        none = torch.zeros_like(bias)
        call(over_support[0], None, over_support[1], None, view(bias), None, view(out), *end)
        call(None, over_query[0], None, over_query[1], view(none), view(out), view(out), *end)
    return out.permute(0, 5, 1, 2, 3, 4)


def test_threads_do_not_change_the_result() -> None:
    low, _ = low_arguments((2, 16, 16, (7, 30), (3, 3), 3, 1), torch.bfloat16)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_native_block(*low, 1, 4, 1e-5, True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_nan_reaches_its_windows_alone() -> None:
    low, _ = low_arguments((2, 4, 6, (5, 5), (5, 5), 3, 1), torch.bfloat16)
    low[0][0, 1, 2, 2, 0, 0] = torch.nan
    found = _native_block(*low[:5], None, None, 1, 1, 0.0, True).isnan()
    wanted = torch.zeros_like(found)
    wanted[0, :, 1:4, 1:4, 0, 0] = True
    wanted[0, :, 2, 2, :2, :2] = True
    assert torch.equal(found, wanted)
