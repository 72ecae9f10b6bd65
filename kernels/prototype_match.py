"""prototype_match: scaled cosines of every position with prototypes.

    s[b, p, n] = scale x_n . y_p / (max(|x_n|, eps) max(|y_p|, eps))

Dot products and norms of features and prototypes in one pass (sum_channels of _thin_product.py);
with a prototype for every position, a program takes one of them and its features. The gradients,
with m = g scale / (max(|x|, eps) max(|y|, eps)) and r(z, t) = t / |z|^2, 0 where eps replaces |z|,

    dx[b, c, n] = sum_p m[b, p, n] y[b, p, c] - r(x_n, sum_p g s) x[b, c, n]
    dy[b, p, c] = sum_n m[b, p, n] x[b, c, n] - r(y_p, sum_n g s) y[b, p, c]

where the sums over n fall away for a prototype of one position. The maps (B, P, N) of this are
small beside the features; PyTorch makes them.

Bytes: the features once, and the prototypes of every position; 7.4 MB for 1024 x 60 x 60 in 16
bits, 2.2 us at an H100's 3.35 TB/s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastfss.kernels._launch import Maps, cdiv
from fastfss.kernels._thin_product import spread, sum_channels, sum_positions, tile


@triton.jit
def _one_each(
    features, prototypes, scores, norms,
    channels_u, positions_u, count, stride_b, stride_c, stride_p, of_b, of_c, of_p, scale, eps,
    CU: tl.constexpr, PU: tl.constexpr, OF_CU: tl.constexpr, OF_PU: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    blocks = tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    # The prototypes of a position first: they find the features in the L2.
    k = pid % count
    p = pid // count % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (pid // count // blocks).to(tl.int64)
    inside = p < positions

    features += b * stride_b * CU * PU
    prototypes += (b * count + k) * of_b * OF_CU * OF_PU
    dots = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    own_squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in tl.range(0, channels, BLOCK_C, num_stages=STAGES):
        c = start + tl.arange(0, BLOCK_C)
        there = (c < channels)[:, None] & inside[None, :]
        at = c[:, None] * (stride_c * PU) + p[None, :] * (stride_p * CU)
        x = tl.load(features + at, mask=there, other=0.0).to(tl.float32)
        at = c[:, None] * (of_c * OF_PU) + p[None, :] * (of_p * OF_CU)
        y = tl.load(prototypes + at, mask=there, other=0.0).to(tl.float32)
        dots += x * y
        squares += x * x
        own_squares += y * y
    norm = tl.sqrt(tl.sum(squares, axis=0))
    own = tl.sqrt(tl.sum(own_squares, axis=0))
    score = tl.sum(dots, axis=0) * (scale / (tl.maximum(norm, eps) * tl.maximum(own, eps)))
    tl.store(scores + (b * count + k) * positions + p, score, mask=inside)
    norms += b * (count + 1) * positions
    tl.store(norms + (k + 1) * positions + p, own, mask=inside)
    if k == 0:
        tl.store(norms + p, norm, mask=inside)


@triton.jit
def _one_each_backward(
    features, prototypes, mixed, along, own_along, grad_features, grad_prototypes,
    channels_u, positions_u, count, stride_b, stride_c, stride_p, of_b, of_c, of_p,
    out_b, out_c, out_p, own_b, own_c, own_p,
    CU: tl.constexpr, PU: tl.constexpr, OF_CU: tl.constexpr, OF_PU: tl.constexpr,
    OUT_CU: tl.constexpr, OUT_PU: tl.constexpr, OWN_CU: tl.constexpr, OWN_PU: tl.constexpr,
    FEATURES: tl.constexpr, PROTOTYPES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    channels, positions = channels_u * CU, positions_u * PU
    channel_blocks, blocks = tl.cdiv(channels, BLOCK_C), tl.cdiv(positions, BLOCK_P)
    pid = tl.program_id(0)
    c = pid % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = pid // channel_blocks % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    b = (pid // channel_blocks // blocks).to(tl.int64)
    inside = p < positions
    there = (c < channels)[:, None] & inside[None, :]

    at = c[:, None] * (stride_c * PU) + p[None, :] * (stride_p * CU)
    x = tl.load(features + b * stride_b * CU * PU + at, mask=there, other=0.0).to(tl.float32)
    r = tl.load(along + b * positions + p, mask=inside, other=0.0)
    result = -x * r[None, :]
    for k in range(count):
        row = b * count + k
        at = c[:, None] * (of_c * OF_PU) + p[None, :] * (of_p * OF_CU)
        y = tl.load(prototypes + row * of_b * OF_CU * OF_PU + at, mask=there, other=0.0)
        y = y.to(tl.float32)
        m = tl.load(mixed + row * positions + p, mask=inside, other=0.0)
        result += y * m[None, :]
        if PROTOTYPES:
            r = tl.load(own_along + row * positions + p, mask=inside, other=0.0)
            to = c[:, None] * (own_c * OWN_PU) + p[None, :] * (own_p * OWN_CU)
            own = x * m[None, :] - y * r[None, :]
            tl.store(grad_prototypes + row * own_b * OWN_CU * OWN_PU + to, own, mask=there)
    if FEATURES:
        to = c[:, None] * (out_c * OUT_PU) + p[None, :] * (out_p * OUT_CU)
        tl.store(grad_features + b * out_b * OUT_CU * OUT_PU + to, result, mask=there)


def _of(maps: Maps, name: str) -> dict[str, int]:
    return {f"{name}_{key}": value for key, value in maps.units.items()}


def forward(
    features: Tensor,  # (B, C, N)
    prototypes: Tensor,  # (B, P, C) or (B, P, C, N)
    scale: float,
    eps: float,
    scores: Tensor,  # (B, P, N)
    norms: Tensor,  # (B, 1, N) or (B, 1 + P, N), float32
) -> None:
    """Into `scores` and `norms`, both contiguous."""
    maps = Maps.of(features)
    if prototypes.ndim == 3:
        sum_channels(maps, prototypes.contiguous(), scores, norms, scale, eps)
        return
    batch, count, _, positions = prototypes.shape
    own = Maps.of(prototypes.flatten(0, 1))
    width = 32 if batch * count * positions < 64 * 132 else 64
    block_c, block_p = tile(maps, 4096, 128 if maps.channels_last else width)
    _one_each[(batch * count * cdiv(positions, block_p),)](
        *(maps.tensor, own.tensor, scores, norms),
        *(*maps.sizes, count, *maps.strides, *own.strides, scale, eps),
        **maps.units,
        **_of(own, "OF"),
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        STAGES=3,
        num_warps=8,
    )


def backward(
    grad: Tensor,  # (B, P, N)
    features: Tensor,
    prototypes: Tensor,
    scores: Tensor,
    norms: Tensor,
    scale: float,
    eps: float,
    grad_features: Tensor | None,  # (B, C, N)
    grad_prototypes: Tensor | None,  # like the prototypes
) -> None:
    """Into those of the two gradients that are given."""
    grad = grad.float().contiguous()
    product = grad * scores
    norm = norms[:, :1]
    along = _shrink(product.sum(1, keepdim=True), norm, eps)
    maps = Maps.of(features)
    if prototypes.ndim == 4:
        own_norm = norms[:, 1:]
        mixed = grad * scale / (norm.clamp_min(eps) * own_norm.clamp_min(eps))
        own_along = _shrink(product, own_norm, eps)
        _backward_one_each(
            maps, prototypes, mixed, along, own_along, grad_features, grad_prototypes
        )
        return
    mixed = grad * scale / norm.clamp_min(eps)
    own_norm = torch.linalg.vector_norm(prototypes, dim=2, keepdim=True, dtype=torch.float32)
    if grad_features is not None:
        unit = (prototypes / own_norm.clamp_min(eps)).contiguous()
        spread(Maps.of(grad_features), mixed, unit, maps, along)
    if grad_prototypes is not None:
        across = own_norm.new_empty(prototypes.shape)
        sum_positions(maps, mixed.contiguous(), across)
        own_along = _shrink(product.sum(2, keepdim=True), own_norm, eps)
        grad_prototypes.copy_(across / own_norm.clamp_min(eps) - own_along * prototypes)


def _shrink(total: Tensor, norm: Tensor, eps: float) -> Tensor:
    """total / norm^2, and 0 where the norm was replaced by eps, which is constant."""
    return torch.where(norm > eps, total / norm.clamp_min(eps).square(), 0.0)


def _backward_one_each(
    maps: Maps,
    prototypes: Tensor,
    mixed: Tensor,
    along: Tensor,
    own_along: Tensor,
    grad_features: Tensor | None,
    grad_prototypes: Tensor | None,
) -> None:
    batch, count, channels, positions = prototypes.shape
    own = Maps.of(prototypes.flatten(0, 1))
    out = maps if grad_features is None else Maps.of(grad_features)
    own_out = own if grad_prototypes is None else Maps.of(grad_prototypes.flatten(0, 1))
    block_c, block_p = tile(maps, 4096, 128)
    _one_each_backward[(batch * cdiv(channels, block_c) * cdiv(positions, block_p),)](
        *(maps.tensor, own.tensor, mixed, along, own_along, out.tensor, own_out.tensor),
        *(*maps.sizes, count, *maps.strides, *own.strides, *out.strides, *own_out.strides),
        **maps.units,
        **_of(own, "OF"),
        **_of(out, "OUT"),
        **_of(own_out, "OWN"),
        FEATURES=grad_features is not None,
        PROTOTYPES=grad_prototypes is not None,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=4,
    )
