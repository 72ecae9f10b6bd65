"""center_pivot_block of maps that never exist as one: made and used up some query rows at a time.

Fresh memory costs more than the arithmetic on it (page faults: 45 ms for the 100 MB of HSNet's
finest correlations, whose convolution takes 13 ms).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastfss.ops import _native_call
from fastfss.ops._center_pivot_torch import group_norm4d, over_query, over_support
from fastfss.ops.center_pivot_conv4d import native_weights

_PART_BYTES = 16 << 20

# (out, start): writes query rows start, start + 1, ... into out (B, I, rows, wa, hb, wb), which
# holds zeros or what an earlier call left.
Fill = Callable[[Tensor, int], None]


def center_pivot_block_in_parts(
    fill: Fill,
    shape: tuple[int, int, int, int, int, int],
    query_weight: Tensor,
    query_bias: Tensor,
    support_weight: Tensor,
    support_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    stride: int,
    groups: int,
    eps: float,
) -> Tensor:
    """`center_pivot_block` of what `fill` writes; on the CPU, without gradients.

    Args:
        fill: makes the maps.
        shape: theirs, (B, I, ha, wa, hb, wb).
        query_weight and the others: as in center_pivot_block.
    """
    batch, inputs, height, width, *support = shape
    grid = [-(-side // stride) for side in support]
    native = _native_call.why_not_native(query_weight) is None
    row = batch * inputs * width * math.prod(support) * query_weight.element_size()
    rows = min(height, max(1, _PART_BYTES // max(1, row)))
    memory = query_weight.new_zeros(batch, inputs, rows, width, *support)
    pruned = query_weight.new_empty(batch, inputs, height, width, *grid)
    outputs = query_weight.shape[0]
    sums = query_weight.new_empty(
        *(batch, height, width, *grid, outputs), dtype=torch.float32 if native else None
    )
    bias = query_bias + support_bias
    weight = native_weights(support_weight) if native else support_weight
    for start in range(0, height, rows):
        part = slice(start, min(start + rows, height))
        maps = memory[:, :, : part.stop - start]
        fill(maps, start)
        pruned[:, :, part] = maps[..., ::stride, ::stride]
        last = maps.permute(0, 2, 3, 4, 5, 1)
        if native:
            _convolve(last, None, weight, None, bias.float(), None, sums[:, part], None, stride)
        else:
            sums[:, part] = over_support(last.contiguous(), weight, bias, stride)
    if not native:
        sums += over_query(pruned.permute(0, 4, 5, 2, 3, 1).contiguous(), query_weight)
        convolved = sums.permute(0, 5, 1, 2, 3, 4)
        return group_norm4d(convolved, norm_weight, norm_bias, groups, eps).relu_()
    single = query_weight.dtype == torch.float32
    out = sums if single else torch.empty_like(sums, dtype=query_weight.dtype)
    norm = (norm_weight.float(), norm_bias.float(), groups, eps)
    none, last = sums.new_zeros(outputs), pruned.permute(0, 2, 3, 4, 5, 1)
    _convolve(None, last, None, native_weights(query_weight), none, sums, out, norm, stride)
    return out.permute(0, 5, 1, 2, 3, 4)


def _convolve(
    last: Tensor | None,
    pruned: Tensor | None,
    support_weight: Tensor | None,
    query_weight: Tensor | None,
    bias: Tensor,
    start: Tensor | None,
    out: Tensor,
    norm: tuple[Tensor, Tensor, int, float] | None,
    stride: int,
) -> None:
    assert _native_call.module is not None

    def view(tensor: Tensor | None) -> _native_call.View | None:
        return None if tensor is None else _native_call.view(tensor)

    weight, shift, groups, eps = norm or (None, None, 1, 0.0)
    _native_call.module.center_pivot_conv4d(
        *map(view, (last, pruned, support_weight, query_weight, bias, start, out, weight, shift)),
        *(stride, groups, eps, torch.get_num_threads(), False),
    )
