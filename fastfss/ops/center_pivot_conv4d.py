"""center_pivot_conv4d: HSNet's 4D convolution, as two 2D convolutions around a shared pivot.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, eq. 4. With x over
query positions a and support positions b, and s the stride over the support:

    y[a, b] = sum_p w1[p] x[a + p, s b] + sum_p w2[p] x[a, s b + p] + b1 + b2

The centre counts in both sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.ops import _cuda_call, _native_call, _triton_call
from fastfss.ops._center_pivot_torch import (
    convolutions,
    gradients,
    group_norm4d,
    normed_convolutions,
)
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers


def center_pivot_conv4d_reference(
    x: Tensor,  # (B, I, ha, wa, hb, wb)
    query_weight: Tensor,  # (O, I, k, k)
    query_bias: Tensor,  # (O,)
    support_weight: Tensor,  # (O, I, k, k)
    support_bias: Tensor,  # (O,)
    stride: int,
) -> Tensor:  # (B, O, ha, wa, hb / stride, wb / stride)
    """The plain form: every window where it stands."""
    batch, inputs, ha, wa, hb, wb = x.shape
    padding = query_weight.shape[-1] // 2
    at_query = x.permute(0, 2, 3, 1, 4, 5).reshape(-1, inputs, hb, wb)
    over_support = F.conv2d(at_query, support_weight, support_bias, stride, padding)
    over_support = over_support.view(batch, ha, wa, *over_support.shape[1:])
    pruned = x[..., ::stride, ::stride]
    at_support = pruned.permute(0, 4, 5, 1, 2, 3).reshape(-1, inputs, ha, wa)
    over_query = F.conv2d(at_support, query_weight, query_bias, 1, padding)
    over_query = over_query.view(batch, *pruned.shape[4:], *over_query.shape[1:])
    return over_support.permute(0, 3, 1, 2, 4, 5) + over_query.permute(0, 3, 4, 5, 1, 2)


def center_pivot_conv4d(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    *,
    stride: int = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Convolve hypercorrelations over the query and over the support, and add.

    Min et al., ICCV 2021, eq. 4. Only the support grid is strided.

    Args:
        x: (B, I, ha, wa, hb, wb) floating point; channels-last memory, as this function returns it,
            is read as it is.
        query_weight: (O, I, k, k), k odd: over (ha, wa).
        query_bias: (O,).
        support_weight: (O, I, k, k): over (hb, wb).
        support_bias: (O,).
        stride: over the support, at least 1.
        backend: "auto", or "native", "triton" or "reference" to force one.

    Returns:
        (B, O, ha, wa, ceil(hb / stride), ceil(wb / stride)), channels last in memory.

    Raises:
        TypeError: if an argument is no floating-point tensor.
        ValueError: if a shape or the stride does not fit.
        NotImplementedError: a forced backend cannot serve the call; the message says why.

    Examples:
        >>> x, weight, bias = torch.ones(1, 2, 3, 3, 5, 4), torch.ones(8, 2, 3, 3), torch.zeros(8)
        >>> center_pivot_conv4d(x, weight, bias, weight, bias, stride=2).shape
        torch.Size([1, 8, 3, 3, 3, 2])
    """
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    result: Tensor = operation(
        backend, x, query_weight, query_bias, support_weight, support_bias, stride
    )
    return result


def center_pivot_block(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    stride: int = 1,
    groups: int,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """`center_pivot_conv4d`, group norm over both grids and ReLU: in one, or for gradients apart.

    Args:
        x: as in center_pivot_conv4d.
        query_weight: likewise.
        query_bias: likewise.
        support_weight: likewise.
        support_bias: likewise.
        stride: likewise.
        backend: likewise.
        norm_weight: (O,).
        norm_bias: (O,).
        groups: of the norm; divides O.
        eps: added to the variances.

    Returns:
        As center_pivot_conv4d.

    Raises:
        TypeError, ValueError, NotImplementedError: as center_pivot_conv4d.

    Examples:
        >>> x, weight, bias = torch.ones(1, 2, 3, 3, 5, 4), torch.ones(8, 2, 3, 3), torch.ones(8)
        >>> center_pivot_block(x, weight, bias, weight, bias, bias, bias, groups=4).shape
        torch.Size([1, 8, 3, 3, 5, 4])
    """
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    _check_norm(x, query_weight.shape[0], norm_weight, norm_bias, groups)
    weights = query_weight, query_bias, support_weight, support_bias
    norm = norm_weight, norm_bias
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *weights, *norm)):
        convolved = operation(backend, x, *weights, stride)
        return group_norm4d(convolved, *norm, groups, eps).relu()
    result: Tensor = block_operation(backend, x, *weights, *norm, stride, groups, eps)
    return result


def _check(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    stride: int,
) -> None:
    tensors = {
        "x": x,
        "query_weight": query_weight,
        "query_bias": query_bias,
        "support_weight": support_weight,
        "support_bias": support_bias,
    }
    for name, one in tensors.items():
        if not isinstance(one, Tensor) or not one.is_floating_point():
            came = str(one.dtype) if isinstance(one, Tensor) else type(one).__name__
            raise expected_kind(name, "a floating-point tensor", came)
        if one.dtype != x.dtype or one.device != x.device:
            raise expected(name, f"{x.dtype} on {x.device}, as x", f"{one.dtype} on {one.device}")
    if x.ndim != 6:
        raise expected("x", "(B, I, ha, wa, hb, wb)", str(tuple(x.shape)))
    outputs, kernel = query_weight.shape[0], query_weight.shape[-1]
    wanted = (outputs, x.shape[1], kernel, kernel)
    for name in ("query_weight", "support_weight"):
        shape = tuple(tensors[name].shape)
        if shape != wanted or kernel % 2 == 0:
            raise expected(name, f"{wanted} with an odd kernel", str(shape))
    for name in ("query_bias", "support_bias"):
        if tensors[name].shape != (outputs,):
            raise expected(name, f"({outputs},)", str(tuple(tensors[name].shape)))
    if stride < 1:
        raise expected("stride", "at least 1", str(stride))


def _check_norm(
    x: Tensor, outputs: int, norm_weight: Tensor, norm_bias: Tensor, groups: int
) -> None:
    for name, one in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if not isinstance(one, Tensor) or one.dtype != x.dtype or one.device != x.device:
            came = f"{one.dtype} on {one.device}" if isinstance(one, Tensor) else repr(one)
            raise expected(name, f"{x.dtype} on {x.device}, as x", came)
        if one.shape != (outputs,):
            raise expected(name, f"({outputs},)", str(tuple(one.shape)))
    if groups < 1 or outputs % groups:
        raise expected("groups", f"a divisor of {outputs}", str(groups))


def _output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """What the operations return, uninitialised and channels last: (B, ha, wa, hc, wc, O)."""
    batch, _, ha, wa, hb, wb = x.shape
    return x.new_empty(batch, ha, wa, -(-hb // stride), -(-wb // stride), weight.shape[0])


# Channels that a step of Triton's product takes whole; see kernels/_center_pivot_products.py.
_TRITON_DEPTH = 16

# Of up to so many bytes of channels, planes of one each are interleaved as they are read.
_INTERLEAVED_BYTES = 64


def native_weights(weight: Tensor) -> Tensor:
    """Weights (O, I, k, k) for the native code: an even number of channels in bfloat16."""
    odd = weight.dtype == torch.bfloat16 and weight.shape[1] % 2
    return (F.pad(weight, (0, 0, 0, 0, 0, 1)) if odd else weight).contiguous()


def _native_block(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: int,
    groups: int,
    eps: float,
    emulate_amx: bool = False,
) -> Tensor:
    assert _native_call.module is not None
    out = _output(x, query_weight, stride)
    if out.numel() == 0:
        return out.permute(0, 5, 1, 2, 3, 4)
    last = x.permute(0, 2, 3, 4, 5, 1)
    if x.shape[1] * x.element_size() > _INTERLEAVED_BYTES or x.stride(5) != 1:
        last = last.contiguous()
    pruned = last[:, :, :, ::stride, ::stride]
    for_query, for_support = native_weights(query_weight), native_weights(support_weight)
    bias = query_bias.float() + support_bias.float()
    norm = [None if one is None else one.float().contiguous() for one in (norm_weight, norm_bias)]
    view = _native_call.view
    _native_call.module.center_pivot_conv4d(
        *(view(last), view(pruned), view(for_support), view(for_query), view(bias), None),
        *(view(out), *(None if one is None else view(one) for one in norm)),
        *(stride, groups, eps, torch.get_num_threads(), emulate_amx),
    )
    return out.permute(0, 5, 1, 2, 3, 4)


def _native(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    stride: int,
) -> Tensor:
    weights = query_weight, query_bias, support_weight, support_bias
    return _native_block(x, *weights, None, None, stride, 1, 0.0)


def _why_not_native(x: Tensor, *arguments: Any) -> str | None:
    return _native_call.why_not_native(x)


def _few_channels_plan(x: Tensor, query_weight: Tensor, stride: int) -> tuple[int, int] | None:
    """What csrc/cuda's product of few channels needs and makes; None where it does not serve.

    The first stage of HSNet's levels, in 16 bits. Windows begin at even columns, so that two
    neighbours of a row are one 4-byte load; so does a pair of outputs at its store.

    Returns:
        Bytes of scratch memory, and of how many query positions each of its statistics is.
    """
    if x.itemsize != 2 or _cuda_call.why_not_cuda(x, query_weight) is not None:
        return None
    (outputs, inputs, kernel), planes = query_weight.shape[:3], x[0, 0].is_contiguous()
    few = 1 <= inputs <= 8 and outputs <= 16 and kernel in (3, 5)
    if not few or outputs % 2 or stride % 2 or not planes:
        return None
    assert _cuda_call.module is not None
    plan: tuple[int, int] = _cuda_call.module.cuda_center_pivot_plan(
        _native_call.view(x), kernel, stride
    )
    return plan if plan[0] > 0 else None  # a query position's planes fit into shared memory


def _few_channels(
    scratch_bytes: int,
    x: Tensor,
    query_weight: Tensor,
    support_weight: Tensor,
    query_bias: Tensor,
    support_bias: Tensor,
    stride: int,
    out: Tensor,  # (B, ha, wa, hb / stride, wb / stride, O)
    statistics: Tensor | None,  # (2, B, ha wa / the plan's query positions, O), float32
) -> None:
    """Into `out`, and means and squared deviations of each block's results."""
    assert _cuda_call.module is not None
    view = _native_call.view
    scratch = x.new_empty(scratch_bytes, dtype=torch.uint8)
    # Held until the call: a view does not keep what it views.
    held = [one.contiguous() for one in (query_weight, support_weight, query_bias, support_bias)]
    _cuda_call.module.cuda_center_pivot_conv4d(
        *(view(x), *(view(one) for one in held), stride, view(scratch)),
        *(view(out), None if statistics is None else view(statistics), _cuda_call.stream_of(out)),
    )


def _triton_block(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    stride: int,
    groups: int,
    eps: float,
) -> Tensor:
    out = _output(x, query_weight, stride)
    if out.numel() > 0:
        last = x.permute(0, 2, 3, 4, 5, 1)
        # Few channels are gathered one by one, where each lies in a plane of its own too.
        if x.shape[1] % _TRITON_DEPTH == 0 or not x[0, 0].is_contiguous():
            last = last.contiguous()
        norm = None
        if norm_weight is not None and norm_bias is not None:
            norm = norm_weight, norm_bias, groups, eps
        weights = query_weight, support_weight, query_bias, support_bias
        with _triton_call.on_device_of(out):
            product = None
            if (plan := _few_channels_plan(x, query_weight, stride)) is not None:
                product = partial(_few_channels, plan[0], x, *weights, stride), plan[1]
            _triton_call.kernels("center_pivot_conv4d").forward(
                last, *weights, stride, out, norm, product
            )
    return out.permute(0, 5, 1, 2, 3, 4)


def _triton(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    stride: int,
) -> Tensor:
    weights = query_weight, query_bias, support_weight, support_bias
    return _triton_block(x, *weights, None, None, stride, 1, 0.0)


def _why_not_triton(x: Tensor, *arguments: Any) -> str | None:
    return _triton_call.why_not_triton(x)


def _fake(x: Tensor, query_weight: Tensor, *arguments: Any) -> Tensor:
    stride = next(one for one in arguments if isinstance(one, int))
    return _output(x, query_weight, stride).permute(0, 5, 1, 2, 3, 4)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, query_weight, _, support_weight, _, ctx.stride = inputs
    ctx.save_for_backward(x, query_weight, support_weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, query_weight, support_weight = ctx.saved_tensors
    needed = ctx.needs_input_grad
    for_x, for_query, for_support = gradients(
        grad, x, query_weight, support_weight, ctx.stride, (needed[0], needed[1], needed[3])
    )
    for_bias = grad.sum(dim=(0, 2, 3, 4, 5)) if needed[2] or needed[4] else None
    return for_x, for_query, for_bias, for_support, for_bias, None


_WEIGHTS = "Tensor query_weight, Tensor query_bias, Tensor support_weight, Tensor support_bias"

operation = register(
    "center_pivot_conv4d",
    f"(Tensor x, {_WEIGHTS}, int stride) -> Tensor",
    reference=convolutions,
    native=_native,
    why_not_native=_why_not_native,
    triton=_triton,
    why_not_triton=_why_not_triton,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
block_operation = register(
    "center_pivot_block",
    f"(Tensor x, {_WEIGHTS}, Tensor norm_weight, Tensor norm_bias, int stride, int groups, "
    "float eps) -> Tensor",
    reference=normed_convolutions,
    native=_native_block,
    why_not_native=_why_not_native,
    triton=_triton_block,
    why_not_triton=_why_not_triton,
    fake=_fake,
)


def _explain(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    *,
    stride: int = 1,
) -> Explanation:
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    return choose(operation, x, query_weight, query_bias, support_weight, support_bias, stride)


def _explain_block(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    stride: int = 1,
    groups: int,
    eps: float = 1e-5,
) -> Explanation:
    _check(x, query_weight, query_bias, support_weight, support_bias, stride)
    _check_norm(x, query_weight.shape[0], norm_weight, norm_bias, groups)
    weights = query_weight, query_bias, support_weight, support_bias, norm_weight, norm_bias
    return choose(block_operation, x, *weights, stride, groups, eps)


explainers["center_pivot_conv4d"] = _explain
explainers["center_pivot_block"] = _explain_block
