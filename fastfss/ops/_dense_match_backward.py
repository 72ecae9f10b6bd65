"""The gradients of dense_match, over blocks of positions: no matrix of all of them.

With w the mask, g the gradient of the result, h that of the denominator, hats for unit vectors:

    softmax   p_ij = w_j e^{s_ij} / sum_j w_j e^{s_ij}      t_ij = g_i . v_j - sum_j p_ij g_i . v_j
    sums      p_ij = w_j e^{s_ij}                           t_ij = g_i . v_j + h_i
    dv_j = sum_i p_ij g_i,   ds_ij = p_ij t_ij,
    dq^_i = scale sum_j ds_ij k^_j,   dk^_j = scale sum_i ds_ij q^_i

Operators of their own, so that torch.compile meets one call instead of a loop. Bounded logits have
native code, csrc/cpu/dense_match_backward.cpp, and all but the maximum Triton kernels,
kernels/dense_match_backward.py; the rest is blocked matrix products in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastfss.ops import _native_call, _triton_call
from fastfss.ops._dense_match_arguments import BOUNDED_SCALE
from fastfss.ops._maps import as_maps, flat_inputs, new_maps
from fastfss.ops._registry import register

# Elements of one block of logits: 4 MiB in float32. Larger blocks leave the cache between the
# steps, smaller ones make thin matrix products.
BLOCK = 1 << 20

NO_MAXIMUM = "the gradient of the maximum is computed in PyTorch"

Inputs = tuple[Tensor, Tensor, Tensor | None]  # query, key, value


@dataclass
class _Side:
    """Queries or keys of one item: unit vectors as rows, and what leads back from them."""

    unit: Tensor  # (N, C)
    inverse: Tensor  # (N, 1): 1 / max(norm, eps)
    above: Tensor  # (N, 1): 1 where the norm, not eps, divides

    @classmethod
    def of(cls, rows: Tensor, normalize: bool, eps: float) -> _Side:
        norm = rows.norm(dim=1, keepdim=True)
        if not normalize:
            return cls(rows, torch.ones_like(norm), torch.zeros_like(norm))
        inverse = 1 / norm.clamp_min(eps)
        return cls(rows * inverse, inverse, (norm > eps).to(norm))

    def gradient(self, of_unit: Tensor) -> Tensor:
        """From the gradient of the unit vectors to that of the vectors."""
        along = (of_unit * self.unit).sum(dim=1, keepdim=True) * self.above
        return (of_unit - self.unit * along) * self.inverse


def _rows(maps: Tensor, item: int) -> Tensor:
    """(N, C) of one item, in float32 or wider."""
    return maps[item].flatten(1).T.to(torch.promote_types(maps.dtype, torch.float32))


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(columns, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _item(
    grads: tuple[
        Tensor, Tensor, Tensor
    ],  # (N, C), (M, C), (M, D): zeros to add to, float32 or wider
    query: Tensor,  # (N, C)
    key: Tensor,  # (M, C)
    value: Tensor,  # (M, D)
    mask: Tensor | None,  # (M,)
    grad: Tensor,  # (N, D)
    grad_denominator: Tensor | None,  # (N,); None: softmax
    scale: float,
    normalize: bool,
    eps: float,
    wanted: list[bool],
) -> None:
    chosen = None if mask is None else mask.nonzero().squeeze(1)
    if chosen is not None and mask is not None:
        key, value, mask = key[chosen], value[chosen], mask[chosen]
    if key.shape[0] == 0:
        return
    q, k = _Side.of(query, normalize, eps), _Side.of(key, normalize, eps)
    for_key, for_value = torch.zeros_like(key), torch.zeros_like(value)
    for rows in _blocks(len(query), len(key)):
        logits = (q.unit[rows] @ k.unit.T).mul_(scale)
        if grad_denominator is None:
            logits.sub_(logits.amax(dim=1, keepdim=True))
        p = logits.exp_()
        if mask is not None:
            p.mul_(mask)
        if grad_denominator is None:
            p.div_(p.sum(dim=1, keepdim=True))
        if wanted[2]:
            for_value.addmm_(p.T, grad[rows])
        if not (wanted[0] or wanted[1]):
            continue
        slope = grad[rows] @ value.T
        if grad_denominator is None:
            slope.sub_((p * slope).sum(dim=1, keepdim=True))
        else:
            slope.add_(grad_denominator[rows, None])
        slope.mul_(p).mul_(scale)
        if wanted[0]:
            grads[0][rows] = slope @ k.unit
        if wanted[1]:
            for_key.addmm_(slope.T, q.unit[rows])
    if wanted[0]:
        grads[0].copy_(q.gradient(grads[0]))
    for total, part in ((grads[1], k.gradient(for_key)), (grads[2], for_value)):
        if chosen is None:
            total.copy_(part)
        else:
            total[chosen] = part


def _item_max(
    grads: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    grad: Tensor,  # (N,)
    scale: float,
    normalize: bool,
    eps: float,
) -> None:
    """The largest logit's gradient goes to its pair; of equal ones, to the first."""
    if mask is not None and not bool((mask > 0).any()):
        return
    q, k = _Side.of(query, normalize, eps), _Side.of(key, normalize, eps)
    for_key = torch.zeros_like(key)
    for rows in _blocks(len(query), len(key)):
        logits = (q.unit[rows] @ k.unit.T).mul_(scale)
        if mask is not None:
            logits.masked_fill_(mask <= 0, -torch.inf)
        best = logits.argmax(dim=1)
        slope = (grad[rows] * scale).unsqueeze(1)
        grads[0][rows] = slope * k.unit[best]
        for_key.index_add_(0, best, slope * q.unit[rows])
    grads[0].copy_(q.gradient(grads[0]))
    grads[1].copy_(k.gradient(for_key))


def _zeros(maps: Tensor) -> Tensor:
    """(B, N, C) for the gradient of (B, C, *positions), in float32 or wider."""
    dtype = torch.promote_types(maps.dtype, torch.float32)
    shape = maps.shape[0], maps.shape[2:].numel(), maps.shape[1]
    return maps.new_zeros(shape, dtype=dtype)


def _match(
    grad: Tensor,  # (B, D, *q) or (B, *q)
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; an empty tensor for an absent value."""
    totals = _zeros(query), _zeros(key), key.new_empty(0) if value is None else _zeros(value)
    for b in range(len(query)):
        q, k = _rows(query, b), _rows(key, b)
        m = None if mask is None else mask[b].to(q)
        if value is None:
            ours = totals[0][b], totals[1][b]
            _item_max(ours, q, k, m, grad[b].flatten().to(q), scale, normalize, eps)
        else:
            slices = totals[0][b], totals[1][b], totals[2][b]
            v, g = _rows(value, b), _rows(grad, b)
            _item(slices, q, k, v, m, g, None, scale, normalize, eps, wanted)
    return _as_gradients(totals, (query, key, value), wanted)


def _sums(
    grad: Tensor,  # (B, D, *q)
    grad_denominator: Tensor,  # (B, *q)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    scale: float,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    totals = _zeros(query), _zeros(key), _zeros(value)
    for b in range(len(query)):
        slices = totals[0][b], totals[1][b], totals[2][b]
        q, k, v, g = _rows(query, b), _rows(key, b), _rows(value, b), _rows(grad, b)
        h = grad_denominator[b].flatten().to(q)
        _item(slices, q, k, v, weights[b].to(q), g, h, scale, True, eps, wanted)
    return _as_gradients(totals, (query, key, value), wanted)


def _as_gradients(
    totals: tuple[Tensor, Tensor, Tensor], inputs: Inputs, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        total.new_empty(0) if maps is None or not w else as_maps(total.to(maps.dtype), maps)
        for total, maps, w in zip(totals, inputs, wanted, strict=True)
    )
    return query, key, value


def _fake_gradients(inputs: Inputs, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    nothing = inputs[0].new_empty
    query, key, value = (
        nothing(0) if maps is None or not w else new_maps(maps, maps.shape[1])
        for maps, w in zip(inputs, wanted, strict=True)
    )
    return query, key, value


# ---- The native core: bounded logits


def _native_sums(
    grad: Tensor,
    grad_denominator: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor | None,
    scale: float,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _fake_gradients((query, key, value), wanted)
    if query.shape[0] == 0:
        return grads
    assert _native_call.module is not None
    view = _native_call.view
    # Named, because a view holds no reference to what it looks at.
    flat = flat_inputs(query, key, value)
    g, h = grad.float().flatten(2), grad_denominator.float().flatten(1)
    flat_grads = [x.flatten(2) if w else None for x, w in zip(grads, wanted, strict=True)]
    _native_call.module.dense_match_backward(
        *(view(x) for x in flat),
        None if weights is None else view(weights),
        view(g),
        view(h),
        *(None if x is None else view(x) for x in flat_grads),
        scale,
        eps,
        torch.get_num_threads(),
    )
    return grads


def _native_match(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax is a quotient of two sums: n / z has g / z for n and -(g . n) / z^2 for z."""
    weights = key.new_ones(len(key), key.shape[2:].numel(), dtype=torch.float32)
    weights = weights if mask is None else mask
    sums = torch.ops.fastfss.dense_match_sums.default(query, key, value, weights, scale, eps)
    numerator, denominator = sums
    inverse = torch.where(denominator == 0, 0, 1 / denominator)
    g = grad * inverse.unsqueeze(1)
    h = (g * numerator).sum(dim=1).mul_(inverse).neg_()
    return _native_sums(g, h, query, key, value, mask, scale, eps, wanted)


def _why_not_native(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    *_: object,
) -> str | None:
    if value is None:
        return NO_MAXIMUM
    if not normalize or abs(scale) > BOUNDED_SCALE:
        return f"normalize = {normalize} with scale = {scale:g} does not bound the logits"
    return _native_call.why_not_native(query, key, value)


def _why_not_native_sums(
    grad: Tensor, grad_denominator: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object
) -> str | None:
    return _native_call.why_not_native(query, key, value)


# ---- Triton


def _triton_sums(
    grad: Tensor,
    grad_denominator: Tensor | None,  # None: softmax
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor | None,
    scale: float,
    eps: float,
    wanted: list[bool],
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _fake_gradients((query, key, value), wanted)
    if query.shape[0] > 0:
        with _triton_call.on_device_of(query):
            _triton_call.kernels("dense_match_backward").backward(
                grad.flatten(2),
                None if grad_denominator is None else grad_denominator.flatten(1),
                *(*flat_inputs(query, key, value), weights, scale, normalize, eps),
                *(x.flatten(2) if w else None for x, w in zip(grads, wanted, strict=True)),
            )
    return grads


def _triton_match(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _triton_sums(grad, None, query, key, value, mask, scale, eps, wanted, normalize)


def _why_not_triton(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor | None, *_: object
) -> str | None:
    if value is None:
        return NO_MAXIMUM
    return _triton_call.why_not_triton(query, key, value)


def _why_not_triton_sums(
    grad: Tensor, grad_denominator: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object
) -> str | None:
    return _triton_call.why_not_triton(query, key, value)


match_backward = register(
    "dense_match_backward",
    "(Tensor grad, Tensor query, Tensor key, Tensor? value, Tensor? mask, float scale, "
    "bool normalize, str reduce, float eps, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    reference=_match,
    native=_native_match,
    why_not_native=_why_not_native,
    triton=_triton_match,
    why_not_triton=_why_not_triton,
    fake=lambda grad, query, key, value, *rest: _fake_gradients((query, key, value), rest[-1]),
)
sums_backward = register(
    "dense_match_sums_backward",
    "(Tensor grad, Tensor grad_denominator, Tensor query, Tensor key, Tensor value, "
    "Tensor weights, float scale, float eps, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    reference=_sums,
    native=_native_sums,
    why_not_native=_why_not_native_sums,
    triton=_triton_sums,
    why_not_triton=_why_not_triton_sums,
    fake=lambda grad, grad_denominator, query, key, value, *rest: _fake_gradients(
        (query, key, value), rest[-1]
    ),
)
