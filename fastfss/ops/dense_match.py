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

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.ops import _native_call
from fastfss.ops._dense_match_backward import match_backward, sums_backward
from fastfss.ops._maps import as_maps, new_maps
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers

MatchReduce = Literal["softmax", "max"]

# Up to this scale the logits of unit vectors need no maximum subtracted in float32.
BOUNDED_SCALE = 40.0


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
        return top.view(query.shape[0], *query.shape[2:]).to(query.dtype)
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
        backend: "auto", or "native" or "reference" to force one.

    Returns:
        softmax: (B, D, *q) in the query's dtype and memory format; max: (B, *q). Zero where the
        mask is empty.

    Raises:
        TypeError: arguments that are not tensors of a fitting kind.
        ValueError: shapes or options that do not fit.
        NotImplementedError: a forced backend cannot serve the call, or the mask requires a
            gradient (the reference gives one).

    Example:
        >>> query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> dense_match(query, query, torch.tensor([[[1.0, 2.0]]]), scale=100.0)
        tensor([[[1., 2.]]])
        >>> dense_match(query, query, mask=torch.tensor([[True, False]]), reduce="max")
        tensor([[1., 0.]])
    """
    args = _arguments(query, key, value, mask, scale, normalize, reduce, eps, backend)
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
        backend: "auto", or "native" or "reference" to force one.

    Returns:
        sum_j w_j e^{s_ij} v_j, (B, D, *q), and sum_j w_j e^{s_ij}, (B, *q); float32, or float64 for
        float64 input.

    Raises:
        TypeError: arguments that are not tensors of a fitting kind.
        ValueError: shapes or options that do not fit.
        NotImplementedError: a forced backend cannot serve the call, or the weights require a
            gradient (the reference gives one).

    Example:
        >>> maps = torch.ones(1, 2, 3)
        >>> dense_match_sums(maps, maps, maps, torch.tensor([[1.0, 0.0, 2.0]]), scale=0.0)[1]
        tensor([[3., 3., 3.]])
    """
    args = _sums_arguments(query, key, value, weights, scale, normalize, eps, backend)
    result: tuple[Tensor, Tensor] = _sums(backend, *args)
    return result


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    mask: Tensor | None,
    scale: float,
    normalize: bool,
    reduce: str,
    eps: float,
    backend: str = "auto",
    mask_name: str = "mask",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, bool, str, float]:
    """The operator's arguments, checked: value filled in, mask flat and floating point."""
    for name, maps in (("query", query), ("key", key), ("value", value)):
        if maps is None:
            continue
        if not isinstance(maps, Tensor) or not maps.is_floating_point():
            came = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
            raise expected_kind(name, "a floating-point tensor", str(came))
        if maps.ndim < 3 or 0 in maps.shape[1:] or maps.shape[0] != query.shape[0]:
            wanted = (
                "(B, channels, *positions) of the query's batch, at least one channel and position"
            )
            raise expected(name, wanted, str(tuple(maps.shape)))
        if maps.device != query.device:
            raise expected(name, f"on {query.device} like the query", str(maps.device))
    if key.shape[1] != query.shape[1]:
        raise expected("key", f"{query.shape[1]} channels like the query", str(tuple(key.shape)))
    if reduce not in get_args(MatchReduce):
        raise expected("reduce", '"softmax" or "max"', repr(reduce))
    if reduce == "max" and value is not None:
        raise expected("value", 'None with reduce="max"', str(tuple(value.shape)))
    if value is not None and value.shape[2:] != key.shape[2:]:
        wanted = f"(B, D, *{tuple(key.shape[2:])}) like the key"
        raise expected("value", wanted, str(tuple(value.shape)))
    if value is None and reduce == "softmax":
        value = key
    if mask is not None:
        mask = _flat_mask(mask_name, mask, key, backend)
    if not eps > 0:
        raise expected("eps", "a number > 0", str(eps))
    return query, key, value, mask, float(scale), normalize, reduce, float(eps)


def _sums_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    scale: float,
    normalize: bool,
    eps: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, float]:
    if not normalize:
        raise expected("normalize", "True: the logits must be bounded", "False")
    if not abs(scale) <= BOUNDED_SCALE:
        raise expected("scale", f"at most {BOUNDED_SCALE:g} in magnitude", str(scale))
    args = _arguments(query, key, value, weights, scale, True, "softmax", eps, backend, "weights")
    return *args[:5], float(eps)


def _flat_mask(name: str, mask: Tensor, key: Tensor, backend: str) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_complex():
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise expected_kind(name, "a real or bool tensor", str(came))
    shape = (key.shape[0], *key.shape[2:])
    if mask.shape != shape:
        raise expected(name, f"{shape}, one weight a key position", str(tuple(mask.shape)))
    if mask.device != key.device:
        raise expected(name, f"on {key.device} like the key", str(mask.device))
    if mask.requires_grad and torch.is_grad_enabled() and backend != "reference":
        raise NotImplementedError(
            f'{name}: requires a gradient, which only backend="reference" computes; detach it'
        )
    return mask.flatten(1).to(torch.promote_types(key.dtype, torch.float32))


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
        out = query.new_empty((query.shape[0], *query.shape[2:]))
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


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


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
    # The native core sees one tensor in several places by its address; flatten may copy, so it is
    # done once for each tensor.
    flat_query = query.flatten(2)
    flat_key = flat_query if _same(key, query) else key.flatten(2)
    flat_value = value
    if value is not None:
        flat_value = flat_key if _same(value, key) else value.flatten(2)
    _native_call.module.dense_match(
        view(flat_query),
        view(flat_key),
        None if flat_value is None else view(flat_value),
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


# ---- Registration


def _fake(query: Tensor, key: Tensor, value: Tensor | None, *_: Any) -> Tensor:
    if value is None:
        return query.new_empty((query.shape[0], *query.shape[2:]))
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
    fake=_fake_sums,
    backward=_backward_sums,
    setup_context=_setup_context,
)


def _copy_note(**tensors: Tensor | None) -> str | None:
    """What `explain` says of tensors whose positions do not lie at one distance from each other."""
    notes = []
    for name, maps in tensors.items():
        if maps is None:
            continue
        try:
            maps.view(*maps.shape[:2], -1)
        except RuntimeError:
            notes.append(f"{name} is copied: its positions, at strides {maps.stride()[2:]}, ")
    return "; ".join(note + "do not lie at one distance" for note in notes) or None


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
    _arguments(query, key, value, mask, scale, normalize, reduce, eps)
    note = _copy_note(query=query, key=key, value=value)
    return choose("dense_match", _why_not_native(query, key, value), note)


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
    _sums_arguments(query, key, value, weights, scale, normalize, eps)
    note = _copy_note(query=query, key=key, value=value)
    return choose("dense_match_sums", _why_not_native(query, key, value), note)


explainers["dense_match"] = _explain
explainers["dense_match_sums"] = _explain_sums
