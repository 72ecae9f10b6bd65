"""center_pivot_conv4d as convolutions of torch: what serves where no kernel does, and the gradient.

Maps are channels last; both 2D convolutions see them without a copy of more than their input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On support grids of at most so many positions a 3 x 3 window covers nearly everything, and one
# matrix product over all pairs of positions beats a convolution (2 x 2: 16 pairs, 36 taps).
_DENSE_POSITIONS = 4
# A part of a map that is looked at twice.
_CACHED_BYTES = 1 << 20


def convolutions(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    stride: int,
) -> Tensor:
    """The same as two 2D convolutions on reordered maps: what serves where no kernel does."""
    last = x.permute(0, 2, 3, 4, 5, 1).contiguous()  # (B, ha, wa, hb, wb, I)
    out = over_support(last, support_weight, query_bias + support_bias, stride)
    pruned = last[:, :, :, ::stride, ::stride].permute(0, 3, 4, 1, 2, 5).contiguous()
    added = over_query(pruned, query_weight)
    return (out + added).permute(0, 5, 1, 2, 3, 4)


def normed_convolutions(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    stride: int,
    groups: int,
    eps: float,
) -> Tensor:
    out = convolutions(x, query_weight, query_bias, support_weight, support_bias, stride)
    return group_norm4d(out, norm_weight, norm_bias, groups, eps).relu_()


def group_norm4d(
    x: Tensor,  # (B, C, ha, wa, hb, wb)
    weight: Tensor,  # (C,)
    bias: Tensor,  # (C,)
    groups: int,
    eps: float,
) -> Tensor:
    """Group norm over both grids, in channels-last memory as it comes.

    Statistics are taken per channel and then put together by group: PyTorch's channels-last kernel
    takes twice the time and loses three digits on maps of this size (8e-5 relative; this: 1e-7).
    """
    batch, channels = x.shape[:2]
    last = x.permute(0, 2, 3, 4, 5, 1).reshape(batch, -1, channels)
    if torch.compiler.is_compiling():
        means, variances = _moments_by_grid(last, x.shape[2] * x.shape[3])
    else:
        means = last.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
        variances = _variances(last, means)
    apart = (batch, groups, -1)
    mean = means.view(apart).mean(dim=2, keepdim=True)
    spread = variances.view(apart) + (means.view(apart) - mean).square()
    scale = (spread.mean(dim=2, keepdim=True) + eps).rsqrt() * weight.view(apart[1:])
    shift = bias.view(apart[1:]) - mean * scale
    shift, scale = (part.to(x.dtype).view(batch, 1, -1) for part in (shift, scale))
    normed = torch.addcmul(shift, last, scale)
    return normed.view(batch, *x.shape[2:], channels).permute(0, 5, 1, 2, 3, 4)


def _moments_by_grid(last: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Means and biased variances (B, C) of (B, N, C), first of each query position.

    Engines may add up N numbers one after another, which loses four digits of millions. The second
    mean is a product, because they make one mean of two.
    """
    dtype = torch.promote_types(last.dtype, torch.float32)
    by_query = last.unflatten(1, (queries, -1))
    share = last.new_full((queries, 1), 1 / queries, dtype=dtype)

    def mean(numbers: Tensor) -> Tensor:
        return (numbers.mean(dim=2, dtype=dtype).transpose(1, 2) @ share).squeeze(2)

    means = mean(by_query)
    return means, mean((by_query - means[:, None, None]).square())


def _variances(last: Tensor, means: Tensor) -> Tensor:
    """Biased variances (B, C) of (B, N, C); by parts that stay in the cache."""
    if torch.is_grad_enabled():
        return (last - means.unsqueeze(1)).square().mean(dim=1)
    centres = means.to(last.dtype)
    rows = max(1, _CACHED_BYTES // max(1, last[:, 0].numel() * last.element_size()))
    squares = [
        (part - centres.unsqueeze(1)).square_().sum(dim=1, dtype=means.dtype)
        for part in last.split(rows, dim=1)
    ]
    return torch.stack(squares).sum(0) / last.shape[1]


def over_support(
    last: Tensor,  # (B, ha, wa, hb, wb, I), contiguous
    weight: Tensor,  # (O, I, k, k)
    bias: Tensor,  # (O,)
    stride: int,
) -> Tensor:  # (B, ha, wa, hb / stride, wb / stride, O)
    """The convolution over the support, at every query position."""
    batch, ha, wa, hb, wb, _ = last.shape
    grid = -(-hb // stride), -(-wb // stride)
    if hb * wb <= _DENSE_POSITIONS:
        dense = _dense(weight, (hb, wb), stride)
        out = F.linear(last.flatten(3).flatten(0, 2), dense, bias.repeat(grid[0] * grid[1]))
    else:
        windows = last.flatten(0, 2).permute(0, 3, 1, 2)
        out = F.conv2d(windows, weight, bias, stride, weight.shape[-1] // 2).permute(0, 2, 3, 1)
    return out.reshape(batch, ha, wa, *grid, -1)


def over_query(
    pruned: Tensor,  # (B, hb, wb, ha, wa, I), contiguous
    weight: Tensor,  # (O, I, k, k)
) -> Tensor:  # (B, ha, wa, hb, wb, O), not contiguous
    """The convolution over the query, at every support position that is left."""
    windows = pruned.flatten(0, 2).permute(0, 3, 1, 2)
    out = F.conv2d(windows, weight, None, 1, weight.shape[-1] // 2).permute(0, 2, 3, 1)
    return out.reshape(*pruned.shape[:5], -1).permute(0, 3, 4, 1, 2, 5)


def _taps(weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Which tap t takes input position p to output position q: (p, t, q) of {0, 1}."""
    kernel = weight.shape[-1]
    units = torch.eye(size[0] * size[1], dtype=weight.dtype, device=weight.device)
    return F.unfold(units.view(-1, 1, *size), kernel, padding=kernel // 2, stride=stride)


def _dense(weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """A convolution over a small grid as one matrix (q O, p I), p input and q output positions."""
    matrix = torch.einsum("ptq,oit->qopi", _taps(weight, size, stride), weight.flatten(2))
    return matrix.flatten(2).flatten(0, 1)


def gradients(
    grad: Tensor,  # (B, O, ha, wa, hc, wc)
    x: Tensor,  # (B, I, ha, wa, hb, wb)
    query_weight: Tensor,
    support_weight: Tensor,
    stride: int,
    needed: tuple[bool, bool, bool],  # of x, query_weight, support_weight
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x and of both weights; None where not needed."""
    batch, inputs, ha, wa = x.shape[:4]
    last = x.permute(0, 2, 3, 4, 5, 1).contiguous()
    grad_last = grad.permute(0, 2, 3, 4, 5, 1).contiguous()  # (B, ha, wa, hc, wc, O)
    for_last, for_support = _support_gradients(
        grad_last, last, support_weight, stride, (needed[0], needed[2])
    )
    pruned = last[:, :, :, ::stride, ::stride].permute(0, 3, 4, 1, 2, 5).contiguous()
    grad_pruned = grad_last.permute(0, 3, 4, 1, 2, 5).contiguous()
    for_pruned, for_query = _conv2d_gradients(
        grad_pruned.flatten(0, 2), pruned.flatten(0, 2), query_weight, 1, (needed[0], needed[1])
    )
    for_x = None
    if for_last is not None and for_pruned is not None:
        for_last = for_last.view(last.shape)
        at_support = for_pruned.view(batch, *grad_last.shape[3:5], ha, wa, inputs)
        for_last[:, :, :, ::stride, ::stride] += at_support.permute(0, 3, 4, 1, 2, 5)
        for_x = for_last.permute(0, 5, 1, 2, 3, 4)
    return for_x, for_query, for_support


def _support_gradients(
    grad: Tensor, last: Tensor, weight: Tensor, stride: int, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of the maps (B ha wa, hb, wb, I) and of the weight."""
    hb, wb = last.shape[3:5]
    if hb * wb > _DENSE_POSITIONS:
        return _conv2d_gradients(grad.flatten(0, 2), last.flatten(0, 2), weight, stride, needed)
    outgoing, incoming = grad.flatten(3).flatten(0, 2), last.flatten(3).flatten(0, 2)
    for_last = outgoing @ _dense(weight, (hb, wb), stride) if needed[0] else None
    for_weight = None
    if needed[1]:
        matrix = (outgoing.T @ incoming).view(-1, weight.shape[0], hb * wb, weight.shape[1])
        taps = _taps(weight, (hb, wb), stride)
        for_weight = torch.einsum("ptq,qopi->oit", taps, matrix).reshape(weight.shape)
    return for_last, for_weight


def _conv2d_gradients(
    grad: Tensor,  # (N, h', w', O)
    maps: Tensor,  # (N, h, w, I)
    weight: Tensor,
    stride: int,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Of the maps (N, h, w, I) and of the weight."""
    padding = weight.shape[-1] // 2
    for_maps, for_weight, _ = torch.ops.aten.convolution_backward.default(
        *(grad.permute(0, 3, 1, 2), maps.permute(0, 3, 1, 2), weight, None),
        *([stride, stride], [padding, padding], [1, 1], False, [0, 0], 1, [*needed, False]),
    )
    return (for_maps.permute(0, 2, 3, 1).contiguous() if needed[0] else None), for_weight
