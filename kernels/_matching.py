"""The inputs of dense_match as its kernels take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastfss.kernels._rows import Rows, Selection

# Up to these scales the exponentials of cosines need no largest logit subtracted. float16 reaches
# 65504, so that e^5 leaves room for weights up to 440.
BOUNDED_SCALE = {torch.float32: 40.0, torch.bfloat16: 40.0, torch.float16: 5.0}


@dataclass(frozen=True)
class Matching:
    """Rows of queries, keys and values, and the keys that count.

    Attributes:
        query, key, value: rows, with inverse norms of the first two if `normalize`.
        selection: None where every key weighs 1.
        factor: scale times log2(e): exponentials are powers of two.
        normalize: whether logits are cosines.
        bounded: whether exponentials need no largest logit subtracted.
        scale: as given.
    """

    query: Rows
    key: Rows
    value: Rows | None
    selection: Selection | None
    factor: float
    normalize: bool
    bounded: bool
    scale: float

    @classmethod
    def of(
        cls,
        query: Tensor,  # (B, C, N)
        key: Tensor,  # (B, C, M)
        value: Tensor | None,  # (B, D, M)
        weights: Tensor | None,  # (B, M)
        scale: float,
        normalize: bool,
        eps: float,
    ) -> Matching:
        """Rows are made once where tensors are the same; without value, weights below 0 exclude."""
        norms = eps if normalize else None
        q, *other = Rows.of_all([query] if _same(query, key) else [query, key], eps=norms)
        k = other[0] if other else q
        v = None
        if value is not None:
            v = k if _same(key, value) else q if _same(query, value) else Rows.of(value)
        selection = None
        if weights is not None:
            selection = Selection.of(weights, positive=value is None)
        bounded = normalize and abs(scale) <= BOUNDED_SCALE[query.dtype]
        factor = scale * math.log2(math.e)
        return cls(q, k, v, selection, factor, normalize, bounded, scale)

    def items(self, start: int, stop: int) -> Matching:
        """That of the items [start, stop) of the batch, as views."""
        if (start, stop) == (0, len(self.query.tensor)):
            return self
        value = None if self.value is None else self.value.items(start, stop)
        selection = None if self.selection is None else self.selection.items(start, stop)
        query, key = self.query.items(start, stop), self.key.items(start, stop)
        return replace(self, query=query, key=key, value=value, selection=selection)

    @property
    def selected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order, weights and count for the kernels; without a selection, addresses not read."""
        if self.selection is None:
            return (self.query.tensor,) * 3
        return self.selection.order, self.selection.weights, self.selection.count


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
