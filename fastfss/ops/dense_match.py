"""dense_match: every query position against every key position, reduced on the fly.

    s_ij = scale * cos(q_i, k_j)    or, without normalisation,    s_ij = scale * q_i . k_j

    softmax   out_i = sum_j m_j e^{s_ij} v_j / sum_j m_j e^{s_ij}
    max       out_i = max of s_ij over the j with m_j > 0
    sums      the numerator and the denominator of softmax, each for itself

Softmax is the self-support local prototype of SSP (Fan et al., ECCV 2022, eq. 4) and, with the mask
as the value, DCAMA's attention (Shi et al., ECCV 2022); max is the prior of PFENet (Tian et al.,
TPAMI 2020, eq. 1). The native core never holds the matrix s; see csrc/cpu/dense_match.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.ops import _native_call, _triton_call
from fastfss.ops._dense_match_arguments import MatchReduce, arguments, copy_note, sums_arguments
from fastfss.ops._dense_match_backward import match_backward, sums_backward
from fastfss.ops._maps import as_maps, flat_inputs, new_maps
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers


def dense_match_reference(
    query: Tensor,  # (B, C, *q)
    key: Tensor,  # (B, C, *k)
    value: Tensor | None,  # (B, D, *k)
    mask: Tensor | None,  # (B, M)
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
) -> Tensor:  # (B, D, *q) or (B, *q)
    """The plain PyTorch twin of `dense_match`."""
    logits = _logits(query, key, scale, normalize, eps)
    weights = _weights(mask, logits)
    logits = logits.masked_fill(weights == 0, -torch.inf)
    top = logits.amax(dim=2, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)  # an empty mask
    if reduce == "max":
        return top.view(query.shape[0], *query.shape[2:])
    assert value is not None
    exponentials = weights * (logits - top.detach()).exp()
    total = exponentials.sum(dim=2, keepdim=True)
    sums = exponentials @ value.flatten(2).transpose(1, 2).to(logits)
    return as_maps((sums / total.masked_fill(total == 0, 1)).to(query.dtype), query)


def dense_match_sums_reference(
    query: Tensor,  # (B, C, *q)
    key: Tensor,  # (B, C, *k)
    value: Tensor,  # (B, D, *k)
    weights: Tensor,  # (B, M)
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor]:  # (B, D, *q), (B, *q)
    """The plain PyTorch twin of `dense_match_sums`."""
    logits = _logits(query, key, scale, True, eps)
    exponentials = _weights(weights, logits) * logits.exp()
    numerator = exponentials @ value.flatten(2).transpose(1, 2).to(logits)
    denominator = exponentials.sum(dim=2).view(query.shape[0], *query.shape[2:])
    return as_maps(numerator, query), denominator


def _logits(query: Tensor, key: Tensor, scale: float, normalize: bool, eps: float) -> Tensor:
    """(B, N, M), in float32 or wider."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k = query.flatten(2).to(dtype), key.flatten(2).to(dtype)
    if normalize:
        q, k = F.normalize(q, dim=1, eps=eps), F.normalize(k, dim=1, eps=eps)
    return scale * (q.transpose(1, 2) @ k)


def _weights(mask: Tensor | None, logits: Tensor) -> Tensor:
    """(B, 1, M) of the logits' dtype; no mask is all ones."""
    if mask is None:
        return logits.new_ones(logits.shape[0], 1, logits.shape[2])
    return mask.unsqueeze(1).to(logits.dtype)


def dense_match(
    query: Tensor,  # (B, C, *q)
    key: Tensor,  # (B, C, *k)
    value: Tensor | None = None,  # (B, D, *k)
    mask: Tensor | None = None,  # (B, *k)
    *,
    scale: float = 1.0,
    normalize: bool = True,
    reduce: MatchReduce = "softmax",
    eps: float = 1e-8,
    backend: Backend = "auto",
) -> Tensor:  # (B, D, *q) or (B, *q)
    """Match every query position with every key position; average the values, or keep the best.

    `*q` and `*k` stand for any spatial dimensions, for example (h, w) or one flat one. The native
    core reads contiguous and channels-last maps as they are and never holds a matrix of positions.
    Gradients reach query, key and value.

    Args:
        query: (B, C, *q), floating point.
        key: (B, C, *k); where it is the query itself, half the products suffice.
        value: (B, D, *k) of the key's positions; None takes the key. Not with `reduce="max"`.
        mask: (B, *k), weights >= 0 or bool; None weighs all positions alike.
        scale: factor of the logits.
        normalize: whether logits are cosines (norms bounded by `eps` from below) or dot products.
        reduce: "softmax" averages the values with weights m_j e^{s_ij}; "max" takes the largest
            logit over the positions with a weight.
        eps: smallest norm to divide by.
        backend: "auto", or "native", "triton" or "reference" to force one.

    Returns:
        softmax: (B, D, *q) in the query's dtype and memory format; max: (B, *q) in float32 or
        wider, because PFENet stretches its narrow range. Zero where the mask is empty.

    Raises:
        TypeError: arguments that are not tensors of a fitting kind.
        ValueError: shapes or options that do not fit.
        NotImplementedError: a forced backend cannot serve the call, or the mask requires a
            gradient (the reference gives one).

    Examples:
        >>> query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> dense_match(query, query, torch.tensor([[[1.0, 2.0]]]), scale=100.0)
        tensor([[[1., 2.]]])
        >>> dense_match(query, query, mask=torch.tensor([[True, False]]), reduce="max")
        tensor([[1., 0.]])
    """
    args = arguments(query, key, value, mask, scale, normalize, reduce, eps, backend)
    result: Tensor = _match(backend, *args)
    return result


def dense_match_sums(
    query: Tensor,  # (B, C, *q)
    key: Tensor,  # (B, C, *k)
    value: Tensor,  # (B, D, *k)
    weights: Tensor,  # (B, *k)
    *,
    scale: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-8,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # (B, D, *q), (B, *q)
    """The numerator and the denominator of `dense_match`, with weights of either sign.

    For adding up over parts of the key positions, or for taking some out again: positions of weight
    zero cost nothing. SSP's second pass (Fan et al., ECCV 2022) adds the few that changed. No
    maximum is subtracted, hence the bound on the scale.

    Args:
        query: (B, C, *q), floating point.
        key: (B, C, *k).
        value: (B, D, *k).
        weights: (B, *k), floating point or bool, of either sign.
        scale: factor of the cosines, at most 40 in magnitude.
        normalize: must be True.
        eps: smallest norm to divide by.
        backend: "auto", or "native", "triton" or "reference" to force one.

    Returns:
        sum_j w_j e^{s_ij} v_j, (B, D, *q), and sum_j w_j e^{s_ij}, (B, *q); float32, or float64 for
        float64 input.

    Raises:
        TypeError: arguments that are not tensors of a fitting kind.
        ValueError: shapes or options that do not fit.
        NotImplementedError: a forced backend cannot serve the call, or the weights require a
            gradient (the reference gives one).

    Examples:
        >>> maps = torch.ones(1, 2, 3)
        >>> dense_match_sums(maps, maps, maps, torch.tensor([[1.0, 0.0, 2.0]]), scale=0.0)[1]
        tensor([[3., 3., 3.]])
    """
    args = sums_arguments(query, key, value, weights, scale, normalize, eps, backend)
    result: tuple[Tensor, Tensor] = _sums(backend, *args)
    return result


# ---- The native core


def _native(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
) -> Tensor:
    if reduce == "max":
        out = _fake(query, key, None)
        _call(query, key, None, mask, out.flatten(1), None, scale, normalize, 1, eps)
    else:
        assert value is not None
        out = new_maps(query, value.shape[1], query.dtype)
        _call(query, key, value, mask, out.flatten(2), None, scale, normalize, 0, eps)
    return out


def _native_sums(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    numerator = new_maps(query, value.shape[1], torch.float32)
    denominator = query.new_empty((query.shape[0], *query.shape[2:]), dtype=torch.float32)
    totals = denominator.flatten(1)
    _call(query, key, value, weights, numerator.flatten(2), totals, scale, True, 2, eps)
    return numerator, denominator


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    denominator: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: int,
    eps: float,
    emulate_amx: bool = False,
) -> None:
    """Into `out`; reduce is a fastfss::MatchReduce."""
    if query.shape[0] == 0:
        return
    assert _native_call.module is not None
    view = _native_call.view
    # Named, because a view holds no reference to what it looks at. The maximum has no value.
    q, k, v = flat_inputs(query, key, key if value is None else value)
    _native_call.module.dense_match(
        view(q),
        view(k),
        None if value is None else view(v),
        None if mask is None else view(mask),
        view(out),
        None if denominator is None else view(denominator),
        scale,
        normalize,
        eps,
        reduce,
        torch.get_num_threads(),
        emulate_amx,
    )


def _why_not_native(query: Tensor, key: Tensor, value: Tensor | None, *_: Any) -> str | None:
    return _native_call.why_not_native(query, key, *([] if value is None else [value]))


# ---- Triton


def _triton(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
) -> Tensor:
    out = _fake(query, key, value)
    if query.shape[0] > 0:
        q, k, v = flat_inputs(query, key, key if value is None else value)
        with _triton_call.on_device_of(query):
            _triton_call.kernels("dense_match").forward(
                *(q, k, None if value is None else v, mask, scale, normalize, reduce, eps),
                out.flatten(1) if value is None else out.flatten(2),
            )
    return out


def _triton_sums(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    numerator, denominator = _fake_sums(query, key, value)
    if query.shape[0] > 0:
        q, k, v = flat_inputs(query, key, value)
        with _triton_call.on_device_of(query):
            _triton_call.kernels("dense_match").forward(
                *(q, k, v, weights, scale, True, "sums", eps),
                *(numerator.flatten(2), denominator.flatten(1)),
            )
    return numerator, denominator


def _why_not_triton(query: Tensor, key: Tensor, value: Tensor | None, *_: Any) -> str | None:
    return _triton_call.why_not_triton(query, key, *([] if value is None else [value]))


# ---- Registration


def _fake(query: Tensor, key: Tensor, value: Tensor | None, *_: Any) -> Tensor:
    if value is None:
        dtype = torch.promote_types(query.dtype, torch.float32)
        return query.new_empty((query.shape[0], *query.shape[2:]), dtype=dtype)
    return new_maps(query, value.shape[1], query.dtype)


def _fake_sums(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    denominator = query.new_empty((query.shape[0], *query.shape[2:]), dtype=dtype)
    return new_maps(query, value.shape[1], dtype), denominator


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = match_backward("auto", grad, *ctx.saved_tensors, *ctx.options, wanted)
    nothing = (None,) * (1 + len(ctx.options))
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), *nothing


def _backward_sums(
    ctx: Any, grad: Tensor | None, grad_denominator: Tensor | None
) -> tuple[Tensor | None, ...]:
    query, _, value, _ = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    fakes = _fake_sums(query, query, value)
    both = (
        fake.new_zeros(fake.shape) if g is None else g
        for g, fake in zip((grad, grad_denominator), fakes, strict=True)
    )
    grads = sums_backward("auto", *both, *ctx.saved_tensors, *ctx.options, wanted)
    nothing = (None,) * (1 + len(ctx.options))
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), *nothing


_match = register(
    "dense_match",
    "(Tensor query, Tensor key, Tensor? value, Tensor? mask, float scale, bool normalize, "
    "str reduce, float eps) -> Tensor",
    reference=dense_match_reference,
    native=_native,
    why_not_native=_why_not_native,
    triton=_triton,
    why_not_triton=_why_not_triton,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_sums = register(
    "dense_match_sums",
    "(Tensor query, Tensor key, Tensor value, Tensor weights, float scale, float eps) "
    "-> (Tensor, Tensor)",
    reference=dense_match_sums_reference,
    native=_native_sums,
    why_not_native=_why_not_native,
    triton=_triton_sums,
    why_not_triton=_why_not_triton,
    fake=_fake_sums,
    backward=_backward_sums,
    setup_context=_setup_context,
)


def _explain(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    normalize: bool = True,
    reduce: MatchReduce = "softmax",
    eps: float = 1e-8,
) -> Explanation:
    args = arguments(query, key, value, mask, scale, normalize, reduce, eps)
    return choose(_match, *args, note=copy_note(query=query, key=key, value=value))


def _explain_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    *,
    scale: float = 1.0,
    normalize: bool = True,
    eps: float = 1e-8,
) -> Explanation:
    args = sums_arguments(query, key, value, weights, scale, normalize, eps)
    return choose(_sums, *args, note=copy_note(query=query, key=key, value=value))


explainers["dense_match"] = _explain
explainers["dense_match_sums"] = _explain_sums
