"""bench.flop against counts by hand: what benchmarks of methods call a floor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastfss.ops
from bench.flop import flop_of
from fastfss.methods.hypercorrelation import Level, squeeze_block

CONVOLUTIONS = {
    "plain": {"kernel": (3, 3)},
    "padded": {"kernel": (3, 3), "padding": 1},
    "strided": {"kernel": (7, 5), "padding": (3, 2), "stride": 2},
    "dilation beyond the map": {"kernel": (3, 3), "padding": 12, "dilation": 12},
    "groups": {"kernel": (3, 3), "padding": 1, "groups": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_counts_the_taps_inside_of_the_map(name):
    options = dict(CONVOLUTIONS[name])
    kernel, groups = options.pop("kernel"), options.get("groups", 1)
    x, weight = torch.ones(2, 8, 11, 9), torch.ones(12, 8 // groups, *kernel)
    # Ones convolved with ones count the products of each output.
    products = F.conv2d(x, weight, **options).sum()
    assert flop_of(lambda: F.conv2d(x, weight, **options)) == 2 * int(products)


def test_a_transposed_convolution_counts_every_product():
    x, weight = torch.randn(2, 8, 5, 7), torch.randn(8, 3, 4, 4)
    assert flop_of(lambda: F.conv_transpose2d(x, weight, stride=2)) == 2 * (2 * 5 * 7) * 8 * 3 * 16


def test_linear_layers_and_products_count_in_inference_mode():
    x, weight = torch.randn(5, 8), torch.randn(3, 8)
    with torch.inference_mode():
        assert flop_of(lambda: F.linear(x, weight)) == 2 * 5 * 8 * 3
        assert flop_of(lambda: torch.einsum("nc,mc->nm", x, weight)) == 2 * 5 * 8 * 3


def maps(channels: int, *sides: int) -> Tensor:
    return torch.randn(2, channels, *sides)


def test_dense_match_counts_selected_keys_alone():
    query, key, value = maps(6, 4, 5), maps(6, 3, 7), maps(2, 3, 7)
    mask = torch.zeros(2, 3, 7)
    mask[0, 0, :4], mask[1, 1, :3] = 1, 1

    def count(**options):
        return flop_of(lambda: fastfss.ops.dense_match(query, key, value, mask, **options))

    assert count() == 2 * (6 + 2) * 20 * (4 + 3)
    best = flop_of(lambda: fastfss.ops.dense_match(query, key, mask=mask, reduce="max"))
    assert best == 2 * 6 * 20 * (4 + 3)
    sums = flop_of(lambda: fastfss.ops.dense_match_sums(query, key, value, mask))
    assert sums == count()


def test_a_map_matched_with_itself_needs_each_pair_once():
    x, value = maps(6, 4, 5), maps(2, 4, 5)
    assert flop_of(lambda: fastfss.ops.dense_match(x, x, value)) == 2 * (
        6 * 2 * (20 * 20 / 2) + 2 * 20 * 2 * 20
    )


def test_pooling_prototypes_and_correlations():
    features, masks = maps(8, 6, 5), torch.rand(2, 3, 24, 20)
    pooled = flop_of(lambda: fastfss.ops.masked_average_pool(features, masks))
    assert pooled == 2 * features.numel() * 3
    for prototypes in (torch.randn(4, 8), torch.randn(2, 4, 8)):
        scores = flop_of(lambda p=prototypes: fastfss.ops.prototype_match(features, p))
        assert scores == 2 * features.numel() * 4
    levels = [maps(8, 6, 5), maps(8, 6, 5)]
    correlated = flop_of(lambda: fastfss.ops.dense_correlation(levels, levels))
    assert correlated == 2 * (2 * 2 * 8 * 30 * 30)


@pytest.mark.parametrize("stride", [1, 2])
def test_center_pivots_count_as_convolutions_of_the_reference(stride):
    pairs = torch.randn(2, 3, 5, 4, 6, 7)
    weights = torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(4, 3, 3, 3), torch.randn(4)

    def count(backend):
        return flop_of(
            lambda: fastfss.ops.center_pivot_conv4d(pairs, *weights, stride=stride, backend=backend)
        )

    assert count("auto") == count("reference")


def test_correlations_in_parts_count_as_the_whole_ones():
    level = Level(
        [maps(8, 6, 5), maps(8, 6, 5)], [maps(8, 5, 6), maps(8, 5, 6)], torch.ones(2, 5, 6)
    )
    block = squeeze_block(2, (4, 8), (3, 3), (2, 1)).eval()
    with torch.inference_mode():
        pairs = level.correlations()
        whole = flop_of(level.correlations) + flop_of(lambda: block(pairs))
        assert whole > 0
        assert flop_of(lambda: block(level)) == whole


def test_every_public_operation_has_a_formula():
    from bench.flop import _FORMULAS

    counted = {str(packet).removeprefix("fastfss.") for packet in _FORMULAS}
    assert set(fastfss.ops.__all__) - {"Explanation", "explain"} <= counted


def test_an_operation_without_a_formula_is_an_error():
    features, masks = maps(8, 6, 5).requires_grad_(), torch.rand(2, 1, 6, 5)
    with pytest.raises(RuntimeError, match=r"masked_average_pool_backward: no formula"):
        flop_of(lambda: fastfss.ops.masked_average_pool(features, masks).sum().backward())
