"""Floating-point operations of a forward: its convolutions, products and our operations.

torch.utils.flop_counter knows the products. Convolutions are counted here without the taps that
fall into padding (of a dilation of 36 on a map of 41 x 41 that is most of them), our operations by
their formulas, of selected positions alone. Additions, norms, activations and resizing are left
out: the count is a lower bound, for convolutions that are summed tap by tap (Winograd's need fewer
products).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import fastfss.ops
from fastfss.methods import hypercorrelation


def taps(size: int, kernel: int, stride: int, padding: int | None = None, dilation: int = 1) -> int:
    """How many taps lie inside of a grid's side, over all output positions.

    Without `padding` it is half of the kernel.
    """
    reach = dilation * (kernel - 1)
    padding = kernel // 2 if padding is None else padding
    starts = range(-padding, size + padding - reach, stride)
    inside = range(0, reach + 1, dilation)
    return sum(0 <= start + tap < size for start in starts for tap in inside)


def _convolution(
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *_rest: Any,
) -> int:
    spatial, kernel = x.shape[2:], weight.shape[2:]
    if transposed:  # every input position meets the whole kernel
        return 2 * x.shape[0] * weight.numel() * math.prod(spatial)
    wide = [list(one) * (len(spatial) // len(one)) for one in (stride, padding, dilation)]
    inside = math.prod(taps(*side) for side in zip(spatial, kernel, *wide, strict=True))
    # weight: (outputs, inputs / groups, *kernel)
    return 2 * x.shape[0] * weight.shape[0] * weight.shape[1] * inside


def _positions(maps: Tensor) -> int:
    return math.prod(maps.shape[2:])


def _dense_match(
    query: Tensor, key: Tensor, value: Tensor | None, mask: Tensor | None, *rest: Any
) -> float:
    batch, channels = query.shape[:2]
    n, m = _positions(query), _positions(key)
    chosen = [m] * batch if mask is None else (mask != 0).flatten(1).sum(1).tolist()
    same = query.data_ptr() == key.data_ptr() and query.shape == key.shape
    scores = sum(m * m / 2 + (n - m) * m if same else n * m for m in chosen)
    averaged = 0 if "max" in rest else (key if value is None else value).shape[1]
    return 2 * channels * scores + 2 * averaged * n * sum(chosen)


def _dense_match_sums(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, *_rest: Any
) -> float:
    return _dense_match(query, key, value, weights)


def _dense_correlation(queries: Sequence[Tensor], supports: Sequence[Tensor], *_rest: Any) -> int:
    pairs = zip(queries, supports, strict=True)
    return sum(2 * q.shape[0] * q.shape[1] * _positions(q) * _positions(s) for q, s in pairs)


def _masked_average_pool(features: Tensor, masks: Tensor, *_rest: Any) -> int:
    return 2 * features.numel() * masks.shape[1]


def _prototype_match(features: Tensor, prototypes: Tensor, *_rest: Any) -> int:
    """Products alone: a norm takes one more multiply-add an element."""
    count = prototypes.shape[0] if prototypes.dim() == 2 else prototypes.shape[1]
    return 2 * features.numel() * count


def _center_pivot(
    x: Tensor,  # (B, inputs, *query, *support)
    query_weight: Tensor,
    _query_bias: Tensor,
    support_weight: Tensor,
    _support_bias: Tensor,
    *rest: Any,
) -> int:
    """Both pivots: the support's side in steps, and the query's at the positions that are left."""
    stride = next(one for one in rest if isinstance(one, int))
    query, support = x.shape[2:4], x.shape[4:]
    left = math.prod(-(-side // stride) for side in support)

    def inside(sides: Sequence[int], weight: Tensor, step: int) -> int:
        shapes = zip(sides, weight.shape[2:], strict=True)
        return math.prod(taps(side, kernel, step) for side, kernel in shapes)

    of_support = math.prod(query) * inside(support, support_weight, stride)
    of_query = left * inside(query, query_weight, 1)
    return 2 * x.shape[0] * math.prod(query_weight.shape[:2]) * (of_support + of_query)


_FORMULAS: dict[Any, Callable[..., float]] = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.fastfss.dense_match: _dense_match,
    torch.ops.fastfss.dense_match_sums: _dense_match_sums,
    torch.ops.fastfss.dense_correlation: _dense_correlation,
    torch.ops.fastfss.masked_average_pool: _masked_average_pool,
    torch.ops.fastfss.prototype_match: _prototype_match,
    torch.ops.fastfss.center_pivot_conv4d: _center_pivot,
    torch.ops.fastfss.center_pivot_block: _center_pivot,
}


class _Counter(TorchDispatchMode):
    flop = 0.0

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in _FORMULAS:
            with self:  # conv2d and linear are made of what has a formula
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if packet in _FORMULAS:
            self.flop += _FORMULAS[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.flop += flop_registry[packet](*args, **kwargs, out_val=out)
        elif func.namespace == "fastfss":
            raise RuntimeError(f"{packet}: no formula for its FLOP in bench/flop.py")
        return out


def _whole_block(
    fill: Callable[[Tensor, int], None], shape: Sequence[int], *weights: Tensor, **options: Any
) -> Tensor:
    """What center_pivot_block_in_parts does without an operation, by two that are counted."""
    # Into rows with gaps dense_correlation_into writes by its operation.
    maps = weights[0].new_zeros(*shape[:-1], shape[-1] + 1)[..., :-1]
    fill(maps, 0)
    return fastfss.ops.center_pivot_block(maps, *weights, **options)


def flop_of(call: Callable[[], Any]) -> float:
    """FLOP of one call, two a multiply-add; the call runs once.

    Raises:
        RuntimeError: it runs an operation of ours whose FLOP nobody wrote down here.
    """
    whole = mock.patch.object(hypercorrelation, "center_pivot_block_in_parts", _whole_block)
    with whole, _Counter() as counted:
        call()
    return counted.flop
