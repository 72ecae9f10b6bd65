"""The operations: a public function each, with a PyTorch reference, native code, Triton kernels."""

from __future__ import annotations

from fastfss.ops.center_pivot_conv4d import center_pivot_block, center_pivot_conv4d
from fastfss.ops.dense_correlation import dense_correlation
from fastfss.ops.dense_match import dense_match, dense_match_sums
from fastfss.ops.explain import Explanation, explain
from fastfss.ops.masked_average_pool import masked_average_pool
from fastfss.ops.prototype_match import prototype_match

__all__ = [
    "Explanation",
    "center_pivot_block",
    "center_pivot_conv4d",
    "dense_correlation",
    "dense_match",
    "dense_match_sums",
    "explain",
    "masked_average_pool",
    "prototype_match",
]
