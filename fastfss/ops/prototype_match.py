"""Prototype matching: scaled cosine scores of every position with one or more prototypes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from fastfss.errors import expected, expected_kind
from fastfss.ops import _cuda_call, _layout, _native_call, _triton_call
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers

Reduce = Literal["max", "mean"]


def prototype_match_reference(
    features: Tensor,  # (B, C, h, w)
    prototypes: Tensor,  # (B, P, C) or (B, P, C, h, w)
    scale: float,
    eps: float,
) -> Tensor:
    """The plain form of `prototype_match`: (B, P, h, w)."""
    floor = _floor(eps, features.dtype)
    x = features / vector_norm(features, dim=1, keepdim=True).clamp_min(floor)
    y = prototypes / vector_norm(prototypes, dim=2, keepdim=True).clamp_min(floor)
    dots = "bchw,bpc->bphw" if prototypes.ndim == 3 else "bchw,bpchw->bphw"
    return scale * torch.einsum(dots, x, y)


def _floor(eps: float, dtype: torch.dtype) -> float:
    """eps, or the least normal number where it would be 0, as 1e-8 is in float16."""
    return max(eps, torch.finfo(dtype).tiny)


def prototype_match(
    features: Tensor,
    prototypes: Tensor,
    *,
    scale: float = 1.0,
    eps: float = 1e-8,
    reduce: Reduce | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Score every position by its cosine with prototypes (Wang et al., ICCV 2019, eq. 3).

    scale * <x, y> / (max(|x|, eps) max(|y|, eps)); the published methods take scale = 10 or 20. A
    zero feature or prototype scores 0.

    Args:
        features: (B, C, h, w), floating point.
        prototypes: of the features' dtype; (P, C) shared by all images, (B, P, C), or
            (B, P, C, h, w) with one for every position. With `reduce`: (P, G, C) or (B, P, G, C),
            G members each.
        scale: factor of the cosine.
        eps: the least norm, above 0.
        reduce: "max" or "mean" of the G members' scores; equal maxima share the gradient.
        backend: "auto", or "native", "cuda", "triton" or "reference" to force one.

    Returns:
        (B, P, h, w), in the features' dtype.

    Raises:
        TypeError: if an argument is no floating-point tensor.
        ValueError: if a shape or option does not fit, or the dtypes differ.
        NotImplementedError: if a forced backend cannot serve the call.

    Examples:
        >>> features = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)
        >>> prototype_match(features, torch.tensor([[0.0, 1.0]]), scale=10.0)
        tensor([[[[ 8., 10.]]]])
    """
    flat = _checked(features, prototypes, eps, reduce)
    scores: Tensor = _forward(backend, features, flat, scale, eps)[0]
    if reduce is None:
        return scores
    members = scores.view(scores.shape[0], -1, prototypes.shape[-2], *scores.shape[2:])
    return members.amax(dim=2) if reduce == "max" else members.mean(dim=2)


def _checked(features: Tensor, prototypes: Tensor, eps: float, reduce: str | None) -> Tensor:
    """The prototypes as (B, P, C) or (B, P, C, h, w); ValueError if anything does not fit."""
    for name, one in (("features", features), ("prototypes", prototypes)):
        if not isinstance(one, Tensor) or not one.is_floating_point():
            came = one.dtype if isinstance(one, Tensor) else type(one).__name__
            raise expected_kind(name, "a floating-point tensor", str(came))
    if features.ndim != 4:
        raise expected("features", "(B, C, h, w)", str(tuple(features.shape)))
    if features.shape[2] * features.shape[3] == 0:
        raise expected("features", "at least one position", str(tuple(features.shape)))
    if reduce not in (None, "max", "mean"):
        raise expected("reduce", 'None, "max" or "mean"', repr(reduce))
    if not eps > 0:
        raise expected("eps", "a number > 0", str(eps))
    if prototypes.dtype != features.dtype or prototypes.device != features.device:
        wanted = f"{features.dtype} on {features.device} like the features"
        raise expected("prototypes", wanted, f"{prototypes.dtype} on {prototypes.device}")
    batch, channels = features.shape[:2]
    shape = tuple(prototypes.shape)
    if reduce is not None:
        if len(shape) == 3 and shape[1] > 0 and shape[2] == channels:
            return prototypes.flatten(0, 1).expand(batch, -1, -1)
        if len(shape) == 4 and shape[0] == batch and shape[2] > 0 and shape[3] == channels:
            return prototypes.flatten(1, 2)
        wanted = f"(P, G, {channels}) or ({batch}, P, G, {channels}), G > 0, with reduce={reduce!r}"
        raise expected("prototypes", wanted, str(shape))
    if len(shape) == 2 and shape[1] == channels:
        return prototypes.expand(batch, -1, -1)
    if len(shape) == 3 and shape[::2] == (batch, channels):
        return prototypes
    if len(shape) == 5 and shape[0] == batch and shape[2:] == tuple(features.shape[1:]):
        return prototypes
    grid = ", ".join(map(str, features.shape[2:]))
    wanted = f"(P, {channels}), ({batch}, P, {channels}) or ({batch}, P, {channels}, {grid})"
    raise expected("prototypes", wanted, str(shape))


# ---- backends. The operator gives the scores and, for the gradient, the norms: (B, 1, h, w) of the
# features or, with a prototype for every position, (B, 1 + P, h, w) of features and prototypes.


def _norms_shape(features: Tensor, prototypes: Tensor) -> tuple[int, ...]:
    maps = 1 if prototypes.ndim == 3 else 1 + prototypes.shape[1]
    return (features.shape[0], maps, *features.shape[2:])


def _norms_dtype(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _reference(
    features: Tensor, prototypes: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    dtype = _norms_dtype(features)
    norms = vector_norm(features, dim=1, keepdim=True, dtype=dtype)
    if prototypes.ndim == 5:
        of_prototypes = vector_norm(prototypes, dim=2, dtype=dtype)
        norms = torch.cat([norms, of_prototypes], dim=1)
    scores = prototype_match_reference(features, prototypes, scale, eps)
    return scores.contiguous(), norms.detach().contiguous()


def _fake(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    scores = features.new_empty((features.shape[0], prototypes.shape[1], *features.shape[2:]))
    shape = _norms_shape(features, prototypes)
    return scores, features.new_empty(shape, dtype=_norms_dtype(features))


def _why_not_native(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> str | None:
    return _native_call.why_not_native(features, prototypes)


def _in_layout(prototypes: Tensor, channels_last: bool) -> Tensor:
    """(B, P, C, h, w) with the memory layout of the features, copied if need be."""
    fits = _layout.is_channels_last if channels_last else _layout.is_channels_first
    if prototypes.shape[1] == 0 or fits(prototypes.select(1, 0)):
        return prototypes
    if channels_last:
        return prototypes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return prototypes.contiguous()


def _native(
    features: Tensor, prototypes: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    scores, norms = _fake(features, prototypes, scale, eps)
    if 0 in (scores.numel(), features.shape[1]):
        return _reference(features, prototypes, scale, eps)
    assert _native_call.module is not None
    maps, channels_last = _layout.walkable(features)
    if prototypes.ndim == 5:
        prototypes = _in_layout(prototypes, channels_last)
    view = _native_call.view
    _native_call.module.prototype_match(
        *(view(maps), view(prototypes), channels_last, scale, eps),
        *(view(scores), view(norms), torch.get_num_threads()),
    )
    return scores, norms


def _why_not_cuda(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> str | None:
    if prototypes.ndim == 5:
        return "the kernel in CUDA C++ does not take a prototype for every position"
    return _cuda_call.why_not_cuda(features, prototypes.unsqueeze(3))


def _cuda(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    scores, norms = _fake(features, prototypes, scale, eps)
    if 0 in (scores.numel(), features.shape[1]):
        return _reference(features, prototypes, scale, eps)
    module = _cuda_call.module
    assert module is not None
    maps, channels_last = _layout.walkable(features)
    if prototypes.shape[2] > 1 and prototypes.stride(2) != 1:
        prototypes = prototypes.contiguous()
    view = _native_call.view
    with _triton_call.on_device_of(features):
        module.cuda_prototype_match(
            *(view(maps), channels_last, view(prototypes), scale, eps),
            *(view(scores), view(norms)),
            _cuda_call.stream_of(features),
        )
    return scores, norms


def _why_not_triton(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> str | None:
    return _triton_call.why_not_triton(features, prototypes)


def _triton(
    features: Tensor, prototypes: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    scores, norms = _fake(features, prototypes, scale, eps)
    if 0 in (scores.numel(), features.shape[1]):
        return _reference(features, prototypes, scale, eps)
    with _triton_call.on_device_of(features):
        _triton_call.kernels("prototype_match").forward(
            *(features.flatten(2), _flat(prototypes), scale, eps),
            *(scores.flatten(2), norms.flatten(2)),
        )
    return scores, norms


def _flat(prototypes: Tensor) -> Tensor:
    """(B, P, C) or (B, P, C, N)."""
    return prototypes if prototypes.ndim == 3 else prototypes.flatten(3)


# ---- gradient: an operator of its own, so that torch.compile sees no native call


def _backward_reference(
    grad: Tensor,  # (B, P, h, w)
    features: Tensor,
    prototypes: Tensor,
    scores: Tensor,
    norms: Tensor,
    scale: float,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients of features and prototypes; an empty tensor for one that is not wanted."""
    grad_features, grad_prototypes = features.new_empty(0), prototypes.new_empty(0)
    single, eps = prototypes.ndim == 3, _floor(eps, features.dtype)
    x_norm = norms[:, :1].to(features.dtype)
    y_norm = vector_norm(prototypes, dim=2, keepdim=True)
    unit = prototypes / y_norm.clamp_min(eps)
    mixed = grad * scale / x_norm.clamp_min(eps)
    product = grad * scores
    if wanted[0]:
        along = _shrink(product.sum(1, keepdim=True), x_norm, eps) * features
        equation = "bphw,bpc->bchw" if single else "bphw,bpchw->bchw"
        grad_features = _layout.empty_like(features)
        grad_features.copy_(torch.einsum(equation, mixed, unit) - along)
    if wanted[1]:
        equation = "bphw,bchw->bpc" if single else "bphw,bchw->bpchw"
        total = product.sum((2, 3)).unsqueeze(2) if single else product.unsqueeze(2)
        across = torch.einsum(equation, mixed, features) / y_norm.clamp_min(eps)
        grad_prototypes = _empty_prototypes(prototypes, features)
        grad_prototypes.copy_(across - _shrink(total, y_norm, eps) * prototypes)
    return grad_features, grad_prototypes


def _shrink(total: Tensor, norm: Tensor, eps: float) -> Tensor:
    """total / norm^2, and 0 where the norm was replaced by eps, which is constant."""
    return torch.where(norm > eps, total / norm.clamp_min(eps).square(), 0.0)


def _empty_prototypes(prototypes: Tensor, features: Tensor) -> Tensor:
    """Memory for the prototypes' gradient; with one for every position, in the features' layout."""
    if prototypes.ndim == 3 or _layout.layout(features) != "channels_last":
        return prototypes.new_empty(prototypes.shape)
    batch, count, channels, height, width = prototypes.shape
    return prototypes.new_empty((batch, count, height, width, channels)).permute(0, 1, 4, 2, 3)


def _backward_native(
    grad: Tensor,
    features: Tensor,
    prototypes: Tensor,
    scores: Tensor,
    norms: Tensor,
    scale: float,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    if 0 in (grad.numel(), features.shape[1]):
        return _backward_reference(grad, features, prototypes, scores, norms, scale, eps, wanted)
    assert _native_call.module is not None
    maps, channels_last = _layout.walkable(features)
    if prototypes.ndim == 5:
        prototypes = _in_layout(prototypes, channels_last)
    # Names, not temporaries: a view holds an address, and the memory must outlive the call.
    scores, norms, grad = scores.contiguous(), norms.contiguous(), grad.contiguous()
    grad_features = _layout.empty_like(maps) if wanted[0] else features.new_empty(0)
    grad_prototypes = _empty_prototypes(prototypes, maps) if wanted[1] else prototypes.new_empty(0)
    view = _native_call.view
    _native_call.module.prototype_match_backward(
        *(view(maps), view(prototypes), channels_last, scale, eps),
        *(view(scores), view(norms), view(grad)),
        *(view(grad_features), view(grad_prototypes), torch.get_num_threads()),
    )
    return grad_features, grad_prototypes


def _backward_triton(
    grad: Tensor,
    features: Tensor,
    prototypes: Tensor,
    scores: Tensor,
    norms: Tensor,
    scale: float,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    if 0 in (grad.numel(), features.shape[1]):
        return _backward_reference(grad, features, prototypes, scores, norms, scale, eps, wanted)
    grads = _backward_fake(grad, features, prototypes, wanted)
    with _triton_call.on_device_of(features):
        _triton_call.kernels("prototype_match").backward(
            *(grad.flatten(2), features.flatten(2), _flat(prototypes)),
            *(scores.flatten(2), norms.flatten(2), scale, eps),
            grads[0].flatten(2) if wanted[0] else None,
            _flat(grads[1]) if wanted[1] else None,
        )
    return grads


def _backward_why_not_native(grad: Tensor, features: Tensor, *_: Any) -> str | None:
    return _native_call.why_not_native(features, grad)


def _backward_why_not_triton(grad: Tensor, features: Tensor, *_: Any) -> str | None:
    return _triton_call.why_not_triton(features, grad)


def _backward_fake(
    grad: Tensor, features: Tensor, prototypes: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    return (
        _layout.empty_like(features) if wanted[0] else features.new_empty(0),
        _empty_prototypes(prototypes, features) if wanted[1] else prototypes.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2], *output)
    ctx.options = inputs[2:]


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    if grad is None:
        return None, None, None, None
    grads = _gradient("auto", grad, *ctx.saved_tensors, *ctx.options, wanted)
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None


_gradient = register(
    "prototype_match_backward",
    "(Tensor grad, Tensor features, Tensor prototypes, Tensor scores, Tensor norms, float scale, "
    "float eps, bool[] wanted) -> (Tensor, Tensor)",
    reference=_backward_reference,
    native=_backward_native,
    why_not_native=_backward_why_not_native,
    triton=_backward_triton,
    why_not_triton=_backward_why_not_triton,
    fake=_backward_fake,
)
# What one pass of csrc/cuda holds.
_ONE_PASS = 8


def _triton_first(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> bool:
    """Many prototypes in 16 bits are a matrix product, which csrc/cuda does not use the units of.

    Ten of 1024 channels and 60 x 60 positions on an H200: 11.4 us by Triton, 20.2 by CUDA C++; in
    float32 45 and 20.
    """
    many = prototypes.ndim == 3 and prototypes.shape[1] > _ONE_PASS
    return many and features.dtype.itemsize == 2


_forward = register(
    "prototype_match",
    "(Tensor features, Tensor prototypes, float scale, float eps) -> (Tensor, Tensor)",
    reference=_reference,
    native=_native,
    why_not_native=_why_not_native,
    cuda=_cuda,
    why_not_cuda=_why_not_cuda,
    triton=_triton,
    why_not_triton=_why_not_triton,
    triton_first=_triton_first,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def _explain(
    features: Tensor,
    prototypes: Tensor,
    *,
    scale: float = 1.0,
    eps: float = 1e-8,
    reduce: Reduce | None = None,
) -> Explanation:
    flat = _checked(features, prototypes, eps, reduce)
    note = _layout.copy_note("features", features)
    if note is None and flat.ndim == 5:
        channels_last = _layout.layout(features) == "channels_last"
        fits = _layout.is_channels_last if channels_last else _layout.is_channels_first
        if not fits(flat.select(1, 0)):
            note = f"prototypes are copied: strides {flat.stride()} are not the features' layout"
    return choose(_forward, features, flat, scale, eps, note=note)


explainers["prototype_match"] = _explain
