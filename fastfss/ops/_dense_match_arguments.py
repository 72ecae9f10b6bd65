"""The checks of dense_match and dense_match_sums, in the operator's order of arguments."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fastfss.errors import expected, expected_kind

MatchReduce = Literal["softmax", "max"]

# Up to this scale the logits of unit vectors need no maximum subtracted in float32: kBoundedScale
# in csrc/cpu/dense_match_rows.h.
BOUNDED_SCALE = 40.0


def arguments(
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
            wanted = "(B, channels, *positions), none empty, of the query's batch"
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


def sums_arguments(
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
    args = arguments(query, key, value, weights, scale, True, "softmax", eps, backend, "weights")
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


def copy_note(**tensors: Tensor | None) -> str | None:
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
