"""PGNet's graph attention unit, and the attention that weighs all positions alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfss.encoders.pointwise import pointwise


class GraphAttention(nn.Module):
    """One unit of PGNet (Zhang et al., ICCV 2019, as lizhaoliu-Lec/DENet implements it).

        s_ij = phi(q_i) . theta(k_j),  a = softmax over j,  out = Phi([a v, own])

    The matching itself is the caller's; `forward` is what follows it.

    Args:
        channels: of all maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.phi = nn.Conv2d(channels, channels, 1)
        self.theta = nn.Conv2d(channels, channels, 1)
        self.Phi = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.ReLU(inplace=True))

    def queries(
        self,
        features: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, h * w, C)
        """phi(q)."""
        return as_rows(self.phi(features))

    def keys(
        self,
        rows: Tensor,  # (B, M, C)
    ) -> Tensor:  # (B, M, C)
        """theta(k)."""
        return F.linear(rows, self.theta.weight.flatten(1), self.theta.bias)

    def queries_for_bare_keys(
        self,
        features: Tensor,  # (B, C, h, w)
    ) -> Tensor:  # (B, h * w, C)
        """theta's weight applied to phi(q): with these, attention reads k in place of theta(k).

        phi(q) . (W k + b) = (W^T phi(q)) . k + phi(q) . b, and the softmax over k takes no notice
        of the last term. So the support side needs nothing of this unit, and all units can match
        with one set of keys.
        """
        return as_rows(pointwise(self.phi(features), self.theta.weight.transpose(0, 1)))

    def forward(
        self,
        attended: Tensor,  # (B, W, C, h, w): of W ways
        own: Tensor,  # (B, C, h, w): of the query
    ) -> Tensor:  # (B * W, C, h, w)
        """Phi of the two, concatenated; the query's half is computed once for all ways."""
        convolution, relu = self.Phi
        assert isinstance(convolution, nn.Conv2d)
        of_attended, of_own = convolution.weight.split(own.shape[1], dim=1)
        half = pointwise(attended.flatten(0, 1), of_attended).unflatten(0, attended.shape[:2])
        other = pointwise(own, of_own, convolution.bias).unsqueeze(1)
        out: Tensor = relu((half + other).flatten(0, 1))
        return out


def as_rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


class _UniformAttention(torch.autograd.Function):
    """See uniform_attention."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, share: float
    ) -> Tensor:
        total = weight.unsqueeze(1) @ value  # (B, 1, D)
        ctx.save_for_backward(query, key, value, weight, total)
        ctx.share = share
        return (share * total).expand(-1, query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With the stored softmax A = c everywhere and dA = dV v^T, as autograd has it:

        dS_ij = A (dA_ij - sum_j A dA_ij) = c dV_i . (v_j - c sum v) =: c dV_i . u_j
        d query_i = sum_j dS_ij key_j = c dV_i (sum_j u_j key_j^T), and d key_j alike: no (N, M).
        """
        (grad,) = grads
        query, key, value, weight, total = ctx.saved_tensors
        weighted = weight.unsqueeze(2) * (value - ctx.share * total)  # (B, M, D)
        grad_query = ctx.share * (grad @ (weighted.transpose(1, 2) @ key))
        grad_key = ctx.share * (weighted @ (grad.transpose(1, 2) @ query))
        grad_value = ctx.share * weight.unsqueeze(2) * grad.sum(dim=1, keepdim=True)
        return grad_query, grad_key, grad_value, None, None


def uniform_attention(
    query: Tensor,  # (B, N, C)
    key: Tensor,  # (B, M, C)
    value: Tensor,  # (B, M, D)
    weight: Tensor,  # (B, M): how often each position counts
    share: float,
) -> Tensor:  # (B, N, D)
    """Attention whose weights are all overwritten with `share` after their softmax.

    out_i = share sum_j weight_j value_j for every i. The gradients are those of code that
    overwrites the softmax's stored result: query and key get some, as if it had come out so.
    """
    out: Tensor = _UniformAttention.apply(query, key, value, weight, share)
    return out
