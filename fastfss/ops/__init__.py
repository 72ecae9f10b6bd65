"""The operations: a public function each, with a PyTorch reference and a native CPU core."""

from __future__ import annotations

from fastfss.ops.dense_correlation import dense_correlation
from fastfss.ops.explain import Explanation, explain

__all__ = ["Explanation", "dense_correlation", "explain"]
