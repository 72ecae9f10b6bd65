"""Correlations of two masked images in both directions, whose masks change and products do not.

With unmasked maps q, s of norms n and masks m, the correlation of the masked maps is

    max(0, <m_i q_i, m_j s_j>) / ((m_i n_i + eps) (m_j n_j + eps)) = a_i b_j C_ij
    C_ij = max(0, <q_i, s_j>) / ((n_i + eps) (n_j + eps))
    a_i = m_i (n_i + eps) / (m_i n_i + eps)

so that C is made once a pair, and what the support sees of the query is its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastfss.methods.hypercorrelation import Hypercorrelation
from fastfss.ops import dense_correlation
from fastfss.ops.dense_correlation import dense_correlation_into

EPS = 1e-5
_PART_BYTES = 4 << 20  # of the product, transposed while it is in the cache


@dataclass(frozen=True, eq=False)
class MutualLevel(Hypercorrelation):
    """One level of P pairs of images; the first P items have the query's side first.

    Attributes:
        product: (2 P, L, h, w, h, w), C of each pair and then its transposes; only P of them for
            the query's side alone.
        norms: (2 P, L, h, w), of the queries' maps and then of the supports'.
        masks: (2 P, 1, h, w), as norms.
    """

    product: Tensor
    norms: Tensor
    masks: Tensor

    @staticmethod
    def of(queries: Sequence[Tensor], supports: Sequence[Tensor]) -> MutualLevel:
        """The level of L maps (P, C_l, h, w) of each side, unmasked."""
        first = queries[0]
        pairs, _, height, width = first.shape
        product = first.new_empty(2 * pairs, len(queries), height, width, height, width)
        if torch.is_grad_enabled() or first.is_cuda or torch.compiler.is_compiling():
            row = pairs * width * height * width * len(queries) * first.element_size()
            rows = min(height, max(1, _PART_BYTES // row))
            for start in range(0, height, rows):
                part = slice(start, start + rows)
                found = dense_correlation([q[:, :, part] for q in queries], supports, eps=EPS)
                product[:pairs, :, part] = found
                product[pairs:, ..., part, :] = found.permute(0, 1, 4, 5, 2, 3)
        else:
            # The supports are packed once; PyTorch's transpose of a matrix is 2.5 times as fast as
            # that of its parts.
            dense_correlation_into(product[:pairs], queries, supports, eps=EPS)
            matrices = product.flatten(4).flatten(2, 3).unflatten(0, (2, pairs)).flatten(1, 2)
            for one, other in zip(*matrices, strict=True):
                other.copy_(one.t())
        # Of each side alone: maps of two memory formats next to each other would be copied.
        norms = [
            torch.cat([q.norm(dim=1), s.norm(dim=1)])
            for q, s in zip(queries, supports, strict=True)
        ]
        masks = first.new_ones(2 * pairs, 1, height, width)
        return MutualLevel(product, torch.stack(norms, dim=1), masks)

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """(B, L, h, w, h, w), B being 2 P, or P for the query's side alone."""
        batch, layers, ha, wa, hb, wb = self.product.shape
        return batch, layers, ha, wa, hb, wb

    def masked(
        self,
        masks: Tensor,  # (2 P, 1, h, w), of the queries and then of the supports
    ) -> MutualLevel:
        """The same pairs under other masks."""
        return replace(self, masks=masks)

    def of_queries(self) -> MutualLevel:
        """The query's side alone."""
        return replace(self, product=self.product[: len(self.norms) // 2])

    def correlations(self) -> Tensor:
        """(B, L, h, w, h, w)."""
        own, other = self._factors()
        return self.product * own[..., None, None] * other[:, :, None, None]

    def fill(self, out: Tensor, start: int) -> None:
        """Write rows of the first side."""
        own, other = self._factors()
        part = slice(start, start + out.shape[2])
        torch.mul(self.product[:, :, part], other[:, :, None, None], out=out)
        out *= own[:, :, part, :, None, None]

    def _factors(self) -> tuple[Tensor, Tensor]:
        """a of the first side and of the second, (B, L, h, w) each."""
        seen = self.masks * (self.norms + EPS) / (self.masks * self.norms + EPS)
        batch = len(self.product)
        return seen[:batch], seen.roll(len(seen) // 2, dims=0)[:batch]
