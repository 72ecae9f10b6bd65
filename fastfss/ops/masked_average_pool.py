"""Masked average pooling: the mean of feature maps under soft masks, the resize included."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.ops import _cuda_call, _layout, _native_call, _triton_call
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers

Resize = Literal["mask", "features"]


def masked_average_pool_reference(
    features: Tensor,  # (B, C, h, w)
    masks: Tensor,  # (B, M, H, W)
    resize: Resize,
    align_corners: bool,
    eps: float,
) -> Tensor:
    """The plain form of `masked_average_pool`: (B, M, C)."""
    weights = _on_feature_grid(features, masks, resize, align_corners)
    weights = weights * _inverse(weights.sum((2, 3), keepdim=True), eps)
    return torch.einsum("bchw,bmhw->bmc", features, weights.to(features.dtype))


def _on_feature_grid(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool
) -> Tensor:
    """m' = A_rows m A_columns^T, (B, M, h, w), A being the resize of masks to features.

    Where the features are resized, to U F, it is the adjoint U^T m, since <U F, m> = <F, U^T m>.
    """
    rows, columns = _resize_matrices(features, masks, resize, align_corners)
    return rows @ masks.to(rows.dtype) @ columns.T


def _resize_matrices(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The two factors of the bilinear resize: (h, H) and (w, W)."""
    dtype = torch.promote_types(features.dtype, torch.float32)

    def matrix(size: int, new_size: int) -> Tensor:  # (new_size, size)
        unit_vectors = torch.eye(size, dtype=dtype, device=features.device).unsqueeze(0)
        resized = F.interpolate(unit_vectors, new_size, mode="linear", align_corners=align_corners)
        return resized.squeeze(0).T

    sizes = zip(features.shape[2:], masks.shape[2:], strict=True)
    if resize == "mask":
        rows, columns = (matrix(of_mask, of_features) for of_features, of_mask in sizes)
    else:
        rows, columns = (matrix(of_features, of_mask).T for of_features, of_mask in sizes)
    return rows, columns


def _inverse(total: Tensor, eps: float) -> Tensor:
    """1 / (total + eps), and 0 instead of infinity: an empty mask gives zero whatever eps is."""
    divisor = total + eps
    return torch.where(divisor == 0, 0.0, 1 / divisor.where(divisor != 0, 1.0))


def masked_average_pool(
    features: Tensor,
    masks: Tensor,
    *,
    resize: Resize = "mask",
    align_corners: bool = True,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Average feature maps under one or more soft masks of another size.

    With `resize="mask"` the mask is shrunk to the features (SSP, Fan et al., ECCV 2022):
    sum F m' / (sum m' + eps). With `resize="features"` the features are enlarged to the mask
    (PANet, Wang et al., ICCV 2019; MLC, Yang et al., ICCV 2021): sum F' m / (sum m + eps), computed
    exactly and without enlarging anything. The resize is bilinear. An empty mask gives zeros.

    Args:
        features: (B, C, h, w), floating point.
        masks: (B, M, H, W), floating point, bool or uint8: weights >= 0, of any size.
        resize: what is resized, "mask" or "features".
        align_corners: as in torch.nn.functional.interpolate; True in the published methods.
        eps: added to the sum of the weights.
        backend: "auto", or "native", "cuda", "triton" or "reference" to force one.

    Returns:
        (B, M, C), in the features' dtype.

    Raises:
        TypeError: if an argument is no tensor or one of a kind of number that does not fit.
        ValueError: if a shape or option does not fit.
        NotImplementedError: if a forced backend cannot serve the call.

    Examples:
        >>> features = torch.arange(8.0).view(1, 2, 2, 2)
        >>> masked_average_pool(features, torch.tensor([[[[1, 0], [1, 0]]]]).bool())
        tensor([[[1.0000, 5.0000]]])
    """
    _check(features, masks, resize, eps)
    result: Tensor = _forward(backend, features, masks, resize, align_corners, eps)
    return result


def _check(features: Tensor, masks: Tensor, resize: str, eps: float) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        came = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise expected_kind("features", "a floating-point tensor", str(came))
    if not isinstance(masks, Tensor) or not (
        masks.is_floating_point() or masks.dtype in (torch.bool, torch.uint8)
    ):
        came = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise expected_kind("masks", "a floating-point, bool or uint8 tensor", str(came))
    if features.ndim != 4:
        raise expected("features", "(B, C, h, w)", str(tuple(features.shape)))
    batch, _, height, width = features.shape
    if masks.ndim != 4 or masks.shape[0] != batch:
        raise expected("masks", f"(B, M, H, W) with B = {batch}", str(tuple(masks.shape)))
    if masks.device != features.device:
        raise expected("masks", f"on {features.device} like the features", str(masks.device))
    if height * width == 0 or masks.shape[2] * masks.shape[3] == 0:
        sizes = f"{tuple(features.shape)} and {tuple(masks.shape)}"
        raise expected("features, masks", "at least one position and one pixel", sizes)
    if resize not in get_args(Resize):
        raise expected("resize", '"mask" or "features"', repr(resize))
    if not eps >= 0:
        raise expected("eps", "a number >= 0", str(eps))


# ---- backends


def _why_not_native(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> str | None:
    return _native_call.why_not_native(features)


def _native_masks(masks: Tensor) -> Tensor:
    """Rows of bytes, float32 or bfloat16."""
    if masks.dtype not in (torch.float32, torch.bfloat16, torch.bool, torch.uint8):
        masks = masks.float()
    return masks if masks.shape[3] == 1 or masks.stride(3) == 1 else masks.contiguous()


def _native(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> Tensor:
    out = features.new_empty((features.shape[0], masks.shape[1], features.shape[1]))
    if out.numel() == 0:
        return out
    assert _native_call.module is not None
    maps, channels_last = _layout.walkable(features)
    masks = _native_masks(masks)
    view = _native_call.view
    _native_call.module.masked_average_pool(
        *(view(maps), channels_last, view(masks), resize == "mask", align_corners, eps),
        *(view(out), torch.get_num_threads()),
    )
    return out


def _why_not_cuda(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> str | None:
    if masks.shape[1] > _cuda_call.MOST_BLOCKS:
        return f"{masks.shape[1]} masks, more than {_cuda_call.MOST_BLOCKS}"
    return _cuda_call.why_not_cuda(features)


def _cuda(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> Tensor:
    (batch, channels, height, width), count = features.shape, masks.shape[1]
    out = features.new_empty((batch, count, channels))
    if out.numel() == 0:
        return out
    module = _cuda_call.module
    assert module is not None
    maps, channels_last = _layout.walkable(features)
    if masks.dtype not in _native_call.DTYPES:
        masks = masks.float()
    row = module.cuda_pool_row(height * width)
    weights = features.new_empty((batch, count, row), dtype=torch.float32)
    parts = None
    if channels_last:
        splits = module.cuda_pool_splits(batch, channels, height * width)
        parts = features.new_empty((batch, splits, count, channels + 1), dtype=torch.float32)
    view = _native_call.view
    with _triton_call.on_device_of(features):
        module.cuda_masked_average_pool(
            *(view(maps), channels_last, view(masks), resize == "mask", align_corners, eps),
            *(view(weights), None if parts is None else view(parts), view(out)),
            _cuda_call.stream_of(features),
        )
    return out


def _why_not_triton(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> str | None:
    return _triton_call.why_not_triton(features)


def _triton(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> Tensor:
    out = features.new_empty((features.shape[0], masks.shape[1], features.shape[1]))
    if out.numel() > 0:
        size = features.shape[2], features.shape[3]
        with _triton_call.on_device_of(features):
            _triton_call.kernels("masked_average_pool").forward(
                features.flatten(2), masks, size, resize == "mask", align_corners, eps, out
            )
    return out


def _fake(
    features: Tensor, masks: Tensor, resize: Resize, align_corners: bool, eps: float
) -> Tensor:
    return features.new_empty((features.shape[0], masks.shape[1], features.shape[1]))


# ---- gradient: an operator of its own, so that torch.compile sees no native call


def _backward_reference(
    grad: Tensor,  # (B, M, C)
    features: Tensor,
    masks: Tensor,
    resize: Resize,
    align_corners: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients of features and masks; an empty tensor for one that is not wanted."""
    grad_features, grad_masks = features.new_empty(0), masks.new_empty(0)
    weights = _on_feature_grid(features, masks, resize, align_corners)
    inverse = _inverse(weights.sum((2, 3), keepdim=True), eps)
    weights = weights * inverse
    if wanted[0]:
        product = torch.einsum("bmc,bmhw->bchw", grad, weights.to(grad.dtype))
        grad_features = _layout.empty_like(features).copy_(product)
    if wanted[1]:
        sums = torch.einsum("bmc,bchw->bmhw", grad, features).to(weights.dtype)
        sums = (sums - (weights * sums).sum((2, 3), keepdim=True)) * inverse
        grad_masks = _to_mask_grid(sums, features, masks, resize, align_corners)
    return grad_features, grad_masks


def _to_mask_grid(
    grad_weights: Tensor, features: Tensor, masks: Tensor, resize: Resize, align_corners: bool
) -> Tensor:
    """The adjoint of `_on_feature_grid`: (B, M, h, w) -> (B, M, H, W)."""
    rows, columns = _resize_matrices(features, masks, resize, align_corners)
    return (rows.T @ grad_weights @ columns).to(masks.dtype)


def _backward_native(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    resize: Resize,
    align_corners: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    if grad.numel() == 0:
        return _backward_reference(grad, features, masks, resize, align_corners, eps, wanted)
    assert _native_call.module is not None
    maps, channels_last = _layout.walkable(features)
    # Names, not temporaries: a view holds an address, and the memory must outlive the call.
    native_masks, grad = _native_masks(masks), grad.contiguous()
    grad_features = _layout.empty_like(maps) if wanted[0] else features.new_empty(0)
    grid = (*masks.shape[:2], *features.shape[2:])
    grad_weights = features.new_empty(grid if wanted[1] else 0, dtype=torch.float32)
    view = _native_call.view
    _native_call.module.masked_average_pool_backward(
        *(view(grad), view(maps), channels_last, view(native_masks)),
        *(resize == "mask", align_corners, eps, view(grad_features), view(grad_weights)),
        torch.get_num_threads(),
    )
    if not wanted[1]:
        return grad_features, masks.new_empty(0)
    return grad_features, _to_mask_grid(grad_weights, features, masks, resize, align_corners)


def _backward_triton(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    resize: Resize,
    align_corners: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    if grad.numel() == 0:
        return _backward_reference(grad, features, masks, resize, align_corners, eps, wanted)
    grads = _backward_fake(grad, features, masks, wanted)
    size = features.shape[2], features.shape[3]
    with _triton_call.on_device_of(features):
        _triton_call.kernels("masked_average_pool").backward(
            *(grad, features.flatten(2), masks, size, resize == "mask", align_corners, eps),
            grads[0].flatten(2) if wanted[0] else None,
            grads[1] if wanted[1] else None,
        )
    return grads


def _backward_why_not_native(grad: Tensor, features: Tensor, *_: Any) -> str | None:
    return _native_call.why_not_native(features, grad)


def _backward_why_not_triton(grad: Tensor, features: Tensor, *_: Any) -> str | None:
    return _triton_call.why_not_triton(features, grad)


def _backward_fake(
    grad: Tensor, features: Tensor, masks: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    wanted = rest[-1]
    return (
        _layout.empty_like(features) if wanted[0] else features.new_empty(0),
        masks.new_empty(masks.shape) if wanted[1] else masks.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    grads = _gradient("auto", grad, *ctx.saved_tensors, *ctx.options, wanted)
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None, None


_gradient = register(
    "masked_average_pool_backward",
    "(Tensor grad, Tensor features, Tensor masks, str resize, bool align_corners, float eps, "
    "bool[] wanted) -> (Tensor, Tensor)",
    reference=_backward_reference,
    native=_backward_native,
    why_not_native=_backward_why_not_native,
    triton=_backward_triton,
    why_not_triton=_backward_why_not_triton,
    fake=_backward_fake,
)
_forward = register(
    "masked_average_pool",
    "(Tensor features, Tensor masks, str resize, bool align_corners, float eps) -> Tensor",
    reference=masked_average_pool_reference,
    native=_native,
    why_not_native=_why_not_native,
    cuda=_cuda,
    why_not_cuda=_why_not_cuda,
    triton=_triton,
    why_not_triton=_why_not_triton,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def _explain(
    features: Tensor,
    masks: Tensor,
    *,
    resize: Resize = "mask",
    align_corners: bool = True,
    eps: float = 1e-5,
) -> Explanation:
    _check(features, masks, resize, eps)
    note = _layout.copy_note("features", features)
    return choose(_forward, features, masks, resize, align_corners, eps, note=note)


explainers["masked_average_pool"] = _explain
