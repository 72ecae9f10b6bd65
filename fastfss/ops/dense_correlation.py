"""dense_correlation: the cosine of every query with every support position, layer by layer.

Min, Kang, Cho: "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, eq. 1:

    corr_l[i, j] = max(0, q_i . s_j / ((|q_i| + eps) (|s_j| + eps)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfss.errors import expected, expected_kind
from fastfss.ops import _cuda_call, _native_call, _triton_call
from fastfss.ops._registry import Backend, register
from fastfss.ops.explain import Explanation, choose, explainers


def dense_correlation_reference(
    queries: Sequence[Tensor],  # L times (B, C_l, hq, wq)
    supports: Sequence[Tensor],  # L times (B, C_l, hs, ws)
    clamp: bool,
    eps: float,
) -> Tensor:  # (B, L, hq, wq, hs, ws)
    """The plain PyTorch twin."""
    layers = []
    for query, support in zip(queries, supports, strict=True):
        q, s = query.flatten(2), support.flatten(2)
        q = q / (q.norm(dim=1, keepdim=True) + eps)
        s = s / (s.norm(dim=1, keepdim=True) + eps)
        layers.append(q.transpose(1, 2) @ s)
    stacked = torch.stack(layers, dim=1)
    stacked = stacked.clamp(min=0) if clamp else stacked
    return stacked.view(_shape(queries, supports))


def dense_correlation(
    queries: Sequence[Tensor],  # L times (B, C_l, hq, wq)
    supports: Sequence[Tensor],  # L times (B, C_l, hs, ws)
    *,
    clamp: bool = True,
    eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:  # (B, L, hq, wq, hs, ws)
    """Correlate every query position with every support position, in several layers.

    Min et al., ICCV 2021, eq. 1. Contiguous and channels-last maps are read as they are.

    Args:
        queries: L maps (B, C_l, hq, wq) of one grid; the channels may differ from layer to layer.
        supports: L maps (B, C_l, hs, ws) of one grid, masked before if only an object counts.
        clamp: whether negative cosines become 0.
        eps: added to every norm.
        backend: "auto", or "native", "cuda", "triton" or "reference" to force one.

    Returns:
        (B, L, hq, wq, hs, ws), in the maps' dtype.

    Raises:
        TypeError: maps that are not floating-point tensors.
        ValueError: for no layer, different numbers of layers, grids, batches, channels or dtypes.
        NotImplementedError: a forced backend cannot serve the call; the message says why.

    Examples:
        >>> maps = [torch.ones(1, 4, 2, 3), torch.ones(1, 8, 2, 3)]
        >>> dense_correlation(maps, maps).shape
        torch.Size([1, 2, 2, 3, 2, 3])
    """
    _check(queries, supports, eps)
    result: Tensor = operation(backend, list(queries), list(supports), clamp, eps)
    return result


def _shape(queries: Sequence[Tensor], supports: Sequence[Tensor]) -> tuple[int, ...]:
    query, support = queries[0].shape, supports[0].shape
    return (query[0], len(queries), *query[2:], *support[2:])


def _check(queries: Sequence[Tensor], supports: Sequence[Tensor], eps: float) -> None:
    if len(queries) != len(supports) or not queries:
        came = f"{len(queries)} and {len(supports)}"
        raise expected("queries and supports", "as many maps each, at least one", came)
    for argument, maps in (("queries", queries), ("supports", supports)):
        for layer, one in enumerate(maps):
            if not isinstance(one, Tensor) or not one.is_floating_point():
                came = str(one.dtype) if isinstance(one, Tensor) else type(one).__name__
                raise expected_kind(f"{argument}[{layer}]", "a floating-point tensor", came)
            first = maps[0]
            if one.ndim != 4 or one.shape[0] != first.shape[0] or one.shape[2:] != first.shape[2:]:
                wanted = f"(B, C, h, w) of the batch and grid of {argument}[0]"
                came = f"{tuple(one.shape)} beside {tuple(first.shape)}"
                raise expected(f"{argument}[{layer}]", wanted, came)
            if one.dtype != queries[0].dtype or one.device != queries[0].device:
                wanted = f"{queries[0].dtype} on {queries[0].device} as queries[0]"
                raise expected(f"{argument}[{layer}]", wanted, f"{one.dtype} on {one.device}")
    for layer, (query, support) in enumerate(zip(queries, supports, strict=True)):
        if query.shape[:2] != support.shape[:2]:
            wanted = f"batch and channels {tuple(query.shape[:2])} of queries[{layer}]"
            raise expected(f"supports[{layer}]", wanted, str(tuple(support.shape[:2])))
    if not eps >= 0:
        raise expected("eps", "a number >= 0", str(eps))


def dense_correlation_into(
    out: Tensor,  # (B, L, hq, wq, hs, ws)
    queries: Sequence[Tensor],
    supports: Sequence[Tensor],
    *,
    eps: float = 1e-5,
) -> None:
    """`dense_correlation` where the memory is there already: fresh memory costs page faults.

    Without gradients. On a CPU nothing is copied where each layer's rows (hs, ws) lie in one piece.

    Args:
        out: to be overwritten, of the maps' dtype.
        queries: as in dense_correlation.
        supports: likewise.
        eps: likewise.

    Raises:
        TypeError, ValueError: as dense_correlation.
        ValueError: if `out` has another shape.
    """
    _check(queries, supports, eps)
    if out.shape != _shape(queries, supports):
        raise expected("out", f"{_shape(queries, supports)}", f"{tuple(out.shape)}")
    in_rows = out.stride(5) == 1 and out.stride(4) == out.shape[5]
    in_rows = in_rows and out.stride(2) == out.shape[3] * out.stride(3)
    maps = [*queries, *supports]
    if (
        in_rows
        and not torch.compiler.is_compiling()
        and not _native_call.why_not_native(out, *maps)
    ):
        _native_into(out, queries, supports, True, eps)
    else:
        out.copy_(dense_correlation(queries, supports, eps=eps))


def _native(queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float) -> Tensor:
    out = queries[0].new_empty(_shape(queries, supports))
    _native_into(out, queries, supports, clamp, eps)
    return out


def _native_into(
    out: Tensor, queries: Sequence[Tensor], supports: Sequence[Tensor], clamp: bool, eps: float
) -> None:
    assert _native_call.module is not None
    if out.numel() == 0:
        return
    batch, layers, _, _, *grid = out.shape
    size = batch, layers, out.shape[2] * out.shape[3], grid[0] * grid[1]
    slices = out.as_strided(size, (*out.stride()[:2], out.stride(3), 1))  # (B, L, N, M)
    threads = torch.get_num_threads()
    for layer, (query, support) in enumerate(zip(queries, supports, strict=True)):
        # Named, because flatten may copy, and a view holds no reference to what it looks at.
        q, s = query.flatten(2), support.flatten(2)
        _native_call.module.dense_correlation(
            _native_call.view(q),
            _native_call.view(s),
            _native_call.view(slices[:, layer]),
            eps,
            clamp,
            threads,
            False,
        )


def _why_not_native(
    queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float
) -> str | None:
    return _native_call.why_not_native(*queries, *supports)


def _why_not_cuda(
    queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float
) -> str | None:
    return _cuda_call.why_not_cuda(*queries, *supports)


def _cuda(queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float) -> Tensor:
    out = queries[0].new_empty(_shape(queries, supports))
    if out.numel() == 0 or 0 in (query.shape[1] for query in queries):
        return dense_correlation_reference(queries, supports, clamp, eps)
    module = _cuda_call.module
    assert module is not None
    view = _native_call.view
    kept: list[Tensor] = []  # a view holds no reference to what it looks at

    def scratch(*shape: int, dtype: torch.dtype) -> _native_call.View:
        kept.append(out.new_empty(shape, dtype=dtype))
        return view(kept[-1])

    def packed(maps: Tensor) -> _native_call.View | None:
        batch, channels, positions = maps.shape
        if module.cuda_correlation_packed(view(maps)):
            return None
        return scratch(batch, positions, -(-channels // 8) * 8, dtype=maps.dtype)

    layers = []
    for query, support in zip(queries, supports, strict=True):
        q, s = query.flatten(2), support.flatten(2)
        kept += [q, s]
        scales = [scratch(*(m.shape[0], m.shape[2]), dtype=torch.float32) for m in (q, s)]
        layers.append((view(q), view(s), packed(q), packed(s), *scales))
    results = out.flatten(4).flatten(2, 3)  # (B, L, N, M)
    with _triton_call.on_device_of(out):
        module.cuda_dense_correlation(layers, view(results), eps, clamp, _cuda_call.stream_of(out))
    return out


def _triton(queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float) -> Tensor:
    out = queries[0].new_empty(_shape(queries, supports))
    if out.numel() == 0 or 0 in (query.shape[1] for query in queries):
        return dense_correlation_reference(queries, supports, clamp, eps)
    flat = [[one.flatten(2) for one in maps] for maps in (queries, supports)]
    slices = out.flatten(4).flatten(2, 3)  # (B, L, N, M)
    with _triton_call.on_device_of(out):
        _triton_call.kernels("dense_correlation").forward(*flat, clamp, eps, slices)
    return out


def _why_not_triton(
    queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float
) -> str | None:
    return _triton_call.why_not_triton(*queries, *supports)


def _triton_first(queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float) -> bool:
    """Where Triton's products are wgmma and those of csrc/cuda mma.sync or, in float32, none.

    HSNet's three levels on an H200, us, Triton and CUDA C++: at batch 8, channels last, 709 and
    1201 in 16 bits, 4705 and 9048 in float32; at batch 1, channels first, 388 and 456, 1762 and
    1564.
    """
    query = queries[0]
    last = query.shape[1] > 1 and query.stride(1) == supports[0].stride(1) == 1
    return (query.dtype.itemsize == 2 or last) and _triton_call.has_warpgroup_products(query.device)


def _fake(queries: list[Tensor], supports: list[Tensor], clamp: bool, eps: float) -> Tensor:
    return queries[0].new_empty(_shape(queries, supports))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, supports, ctx.clamp, ctx.eps = inputs
    ctx.layers = len(queries)
    # The sign of the result is all that the clamp's gradient needs.
    ctx.save_for_backward(output if ctx.clamp else output.new_empty(0), *queries, *supports)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], list[Tensor], None, None]:
    output, *maps = ctx.saved_tensors
    if ctx.clamp:
        grad = torch.where(output > 0, grad, 0)
    flat = grad.flatten(4).flatten(2, 3)  # (B, L, N, M)
    queries, supports = maps[: ctx.layers], maps[ctx.layers :]
    grads: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer, (query, support) in enumerate(zip(queries, supports, strict=True)):
        q, s = query.flatten(2), support.flatten(2)
        q_norm, s_norm = (x.norm(dim=1, keepdim=True) for x in (q, s))
        for_q = s / (s_norm + ctx.eps) @ flat[:, layer].transpose(1, 2)
        for_s = q / (q_norm + ctx.eps) @ flat[:, layer]
        grads[0].append(_unnormalize(q, q_norm, for_q, ctx.eps).view(query.shape))
        grads[1].append(_unnormalize(s, s_norm, for_s, ctx.eps).view(support.shape))
    return grads[0], grads[1], None, None


def _unnormalize(x: Tensor, norm: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The gradient of x (B, C, N) from that of x / (|x| + eps); 0 is taken for d|x| at x = 0."""
    along = (x * grad).sum(dim=1, keepdim=True) / norm.clamp_min(torch.finfo(x.dtype).tiny)
    return (grad - x * along / (norm + eps)) / (norm + eps)


operation = register(
    "dense_correlation",
    "(Tensor[] queries, Tensor[] supports, bool clamp, float eps) -> Tensor",
    reference=dense_correlation_reference,
    native=_native,
    why_not_native=_why_not_native,
    cuda=_cuda,
    why_not_cuda=_why_not_cuda,
    triton_first=_triton_first,
    triton=_triton,
    why_not_triton=_why_not_triton,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)


def _explain(
    queries: Sequence[Tensor],
    supports: Sequence[Tensor],
    *,
    clamp: bool = True,
    eps: float = 1e-5,
) -> Explanation:
    _check(queries, supports, eps)
    return choose(operation, list(queries), list(supports), clamp, eps)


explainers["dense_correlation"] = _explain
